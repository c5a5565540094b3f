"""A few updates of a classifier's run that is not started, to measure its speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kfrl.runs.folder import RunFolder
from kfrl.supervised.run import Run
from kfrl.supervised.trainer import Trainer
from kfrl.training.trainer import Display

MEASURED = 2.0
"""Seconds of updates that a rate is measured on, at least; at most an epoch."""


@contextmanager
def rehearsal(run: Run, display: Display) -> Iterator[Trainer]:
    """A trainer that leaves no file."""
    with TemporaryDirectory(prefix="kfrl-trial-") as folder:
        yield Trainer(run.at(RunFolder(Path(folder))), display)


def expected_rate(trainer: Trainer) -> float:
    """Images a second, measured on a few updates."""
    images, started = 0, time.perf_counter()
    for index, batch in enumerate(trainer.images.epoch(trainer.config.seed, 0, 0)):
        if index == 1:  # The first update was for warming up.
            images, started = 0, time.perf_counter()
        trainer.update(batch)
        images += len(batch.labels)
        if index and time.perf_counter() - started > MEASURED:
            break
    return images / (time.perf_counter() - started)
