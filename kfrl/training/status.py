"""The status of a run. Imports no torch, because a sweep shows runs that other processes train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """The progress of a run, for displays; each domain adds fields."""

    done: float
    """Agent steps or epochs done; in a phase of source games, the steps of the phase."""
    total: float
    rate: float
    """Steps or images a second."""
    eta_sec: float | None
    """Remaining seconds at this rate; None while the rate is unknown."""
    student: float | None
    """Last score of the student alone: mean raw score, or accuracy on the validation images."""
    student_at: float | None
    """Step or epoch of that score, if known."""
    part: str
    """Name of the phase or stage; empty if the run has only one."""
    metrics: Mapping[str, float]
    """Metrics of the method, e.g. p per layer."""

    @property
    def share(self) -> float:
        """The share that is done, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0
