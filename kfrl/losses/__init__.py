"""Losses: tensors in, scalar out, nothing else."""
