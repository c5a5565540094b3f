"""How a small model is learned from a table: a file a method."""
