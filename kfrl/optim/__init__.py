"""Optimisers that use the structure of a net."""
