"""The command line: the outermost layer, which alone may import everything."""
