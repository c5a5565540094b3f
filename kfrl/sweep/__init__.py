"""Sweeps: many runs from one file, run by Ray Tune on one machine or a cluster."""
