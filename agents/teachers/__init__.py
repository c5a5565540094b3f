"""Teachers: frozen nets found by name, read from files that are never unpickled."""
