"""Teachers: frozen nets, found by name and read from files without unpickling."""
