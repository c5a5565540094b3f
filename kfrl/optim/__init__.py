"""Optimisers that see a net's modules."""
