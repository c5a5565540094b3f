import random

import numpy as np
import torch

from kfrl.seeding import seed_everything, stream


def test_streams_are_distinct_and_fit_31_bits() -> None:
    seeds = {stream(seed, index) for seed in range(20) for index in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_streams_are_always_the_same() -> None:
    # From NumPy's documentation: SeedSequence is stable across versions.
    assert stream(1, 2) == int(np.random.SeedSequence([1, 2]).generate_state(1)[0]) // 2
    assert stream(1, 2) != stream(2, 1)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_fixes_every_generator() -> None:
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert all(new != old for new, old in zip(draw(), first, strict=True))
