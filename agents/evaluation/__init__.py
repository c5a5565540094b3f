"""Evaluation: games played for a score or a video."""
