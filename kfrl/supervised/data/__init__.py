"""Data sets: download, read, make batches, corrupt."""
