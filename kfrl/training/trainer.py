"""What every trainer has: a run, a display, a way to end it between two updates, and a clock."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

R = TypeVar("R")


class Display(Protocol):
    """Shows a run; the command line brings one."""

    def update(self, status: Any) -> None:
        """Show where the run stands: a `Status`."""

    def say(self, text: str) -> None:
        """Print a line."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    net: nn.Module
    """The net that trained, links and all."""
    step: int
    """How far it came: agent steps in the run's own game, or whole epochs of images."""
    source_steps: int = 0
    """Agent steps in its source games."""
    stopped_by: int | None = None
    """The signal that stopped it."""
    failure: str | None = None
    """What ended it early: a learner's traceback, or the way it died."""


class Trainer(ABC, Generic[R]):
    """One run of one method."""

    def __init__(self, run: R, display: Display) -> None:
        """Start the clock."""
        self.run, self.display = run, display
        self.signal: int | None = None
        self.failure: str | None = None
        self._elapsed = 0.0
        self._started = self._saved = time.monotonic()

    @abstractmethod
    def train(self) -> Outcome:
        """Train until the run's budget is spent, a signal comes or a learner fails; then save."""

    @abstractmethod
    def save(self) -> None:
        """Write a checkpoint."""

    def stop(self, number: int) -> None:
        """End between two updates, as signal `number` does; from any thread."""
        self.signal = number

    def fail(self, reason: str | None) -> None:
        """Keep the first reason to end; the others follow from it."""
        self.failure = self.failure or reason

    @property
    def stopping(self) -> bool:
        """Whether a signal or a failure ends the run."""
        return self.signal is not None or self.failure is not None

    @property
    def elapsed_sec(self) -> float:
        """Seconds of training, earlier sessions of the run included."""
        return self._elapsed + time.monotonic() - self._started

    def save_if_due(self, every: float) -> None:
        """Write a checkpoint when the last one is `every` seconds old."""
        if time.monotonic() - self._saved > every:
            self.save()
            self._saved = time.monotonic()
