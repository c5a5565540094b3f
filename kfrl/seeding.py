"""Random seeds: one seed per run, a different stream for each of its processes."""

from __future__ import annotations

import random

import numpy as np
import torch

REVIEW, EVALUATION, PLAY, CURVE, FOLD = 999_996, 999_997, 999_998, 999_999, 1_000_000
"""Further streams of a run: reviews of teachers (counted down from it), the final games, observations before a phase,
games of the learning curve, games of a later `kfrl fold`."""


def stream(seed: int, index: int) -> int:
    """The seed of process `index` of a run: distinct streams for any (seed, index), within 31 bits."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch in this process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
