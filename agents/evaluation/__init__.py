"""Games played for a score or a video."""
