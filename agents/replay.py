"""A replay buffer of batches."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

SAMPLE_BYTES = 4 * 84 * 84
"""Bytes of an observation, nearly all of a sample."""


def smaller_than_measured(setting: str, samples: int, workers: int, measured: int) -> tuple[str, ...]:
    """A sentence for the start of a run whose workers have smaller replay buffers than the published figures are of.

    Args:
        setting: The name of the setting.
        samples: Its value, for all workers together.
        workers: Among whom it is divided.
        measured: Samples of a worker in the published figures.
    """
    each, wanted = samples // workers, measured * workers
    if each >= measured:
        return ()
    return (
        f"The replay buffers of {each:,} samples for each of {workers} workers are smaller than those of the published "
        f"figures, {measured:,}. For buffers of that size give --{setting} {wanted:,} "
        f"({wanted * SAMPLE_BYTES / 2**30:.1f} GiB), or fewer --workers.",
    )


class Memory:
    """A replay buffer of the latest batches. A batch is a tuple of tensors with the samples in the first dimension.

    The samples of a rollout are similar, so one pass over it teaches little: on Breakout the student alone imitated an
    expert about four times better, after equally many steps, from three random batches per rollout than from the
    rollout itself.
    """

    def __init__(self, capacity: int) -> None:
        """Keep about `capacity` samples."""
        self.capacity = capacity
        self._kept: deque[tuple[Tensor, ...]] = deque()
        self._size = 0

    def add(self, *batch: Tensor) -> None:
        """Add a batch; the oldest samples beyond the capacity are dropped."""
        self._kept.append(batch)
        self._size += len(batch[0])
        while len(self._kept) > 1 and self._size - len(self._kept[0][0]) >= self.capacity:
            self._size -= len(self._kept.popleft()[0])

    def draw(self, count: int, parts: int = 8) -> tuple[Tensor, ...]:
        """Draw `count` random samples from up to `parts` random batches."""
        parts = min(parts, count)
        chosen = [self._kept[index] for index in torch.randint(len(self._kept), (parts,)).tolist()]
        shares = [count // parts + (part < count % parts) for part in range(parts)]
        rows = [torch.randint(len(batch[0]), (share,)) for batch, share in zip(chosen, shares, strict=True)]
        fields = zip(*chosen, strict=True)
        return tuple(torch.cat([part[picked] for part, picked in zip(field, rows, strict=True)]) for field in fields)
