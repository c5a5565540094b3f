"""Runs of games side by side."""
