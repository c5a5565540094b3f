"""The command line, the outermost layer: only it may import every other package."""
