"""Comparison of runs on games."""
