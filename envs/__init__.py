"""Atari environments under named, hashed protocols."""
