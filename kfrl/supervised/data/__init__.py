"""Data sets: found, downloaded, read, batched and corrupted."""
