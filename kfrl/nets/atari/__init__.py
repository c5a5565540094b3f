"""Nets that play Atari games."""
