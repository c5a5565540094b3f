"""Base class of trainers: a run, a display, a stop between two updates, and a clock."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

R = TypeVar("R")


class Display(Protocol):
    """Interface of displays of a run, which the command line implements."""

    def update(self, status: Any) -> None:
        """Show a `Status`."""

    def say(self, text: str) -> None:
        """Print a line."""


@dataclass(frozen=True)
class Outcome:
    """The end of a run, or of its training so far."""

    net: nn.Module
    """The net that was trained, with its links."""
    step: int
    """Agent steps done in the run's own game, or whole epochs of images."""
    source_steps: int = 0
    """Agent steps done in the source games."""
    stopped_by: int | None = None
    """The signal that stopped it."""
    failure: str | None = None
    """The error that ended it early: a sentence, a learner's traceback, or its exit code."""
    resumable: bool = True
    """Whether a resumed run may get past the failure."""

    def failure_and_advice(self, resume_command: str) -> str:
        """The failure, with the command that resumes the run if that may help."""
        return f"{self.failure}\nResume with: {resume_command}" if self.resumable else str(self.failure)


class Trainer(ABC, Generic[R]):
    """Base class of the trainers of games and of images; trains one run."""

    def __init__(self, run: R, display: Display) -> None:
        """Start the clock."""
        self.run, self.display = run, display
        self.signal: int | None = None
        self.failure: str | None = None
        self.resumable = True
        self._elapsed = 0.0
        self._started = self._saved = time.monotonic()

    @abstractmethod
    def train(self) -> Outcome:
        """Train until the budget is used up, a signal arrives or a learner fails; then save."""

    @abstractmethod
    def save(self) -> None:
        """Write a checkpoint."""

    def stop(self, number: int) -> None:
        """Stop between two updates, as on signal `number`; may be called from any thread."""
        self.signal = number

    def fail(self, reason: str | None, resumable: bool = True) -> None:
        """Note a failure. The first one is kept, because it causes the later ones.

        Args:
            reason: What is shown to the user; None if nothing failed.
            resumable: Whether a resumed run may get past it.
        """
        if reason and self.failure is None:
            self.failure, self.resumable = reason, resumable

    @property
    def stopping(self) -> bool:
        """Whether a signal or a failure is about to end the run."""
        return self.signal is not None or self.failure is not None

    @property
    def steady(self) -> tuple[int, int]:
        """Steps before updates take their usual time, and steps after which their times repeat, to measure a rate."""
        return 0, 0

    @property
    def elapsed_sec(self) -> float:
        """Seconds of training, including earlier sessions of the run."""
        return self._elapsed + time.monotonic() - self._started

    def save_if_due(self, every: float) -> None:
        """Write a checkpoint if the last one is more than `every` seconds old."""
        if time.monotonic() - self._saved > every:
            self.save()
            self._saved = time.monotonic()
