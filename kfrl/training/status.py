"""Where a run stands. Imports no torch: a sweep shows runs that other processes train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """Where a run stands, for whoever shows it; each domain adds what it has more to show."""

    done: float
    """Agent steps, or epochs; in a phase of source games, the steps of the phase."""
    total: float
    rate: float
    """Steps or images a second."""
    eta_sec: float | None
    """Seconds to go at this rate; None while there is no rate."""
    student: float | None
    """The student alone when it was last evaluated: mean raw score, or accuracy on validation images."""
    student_at: float | None
    """After how many steps or epochs that was, where it is known."""
    part: str
    """The phase or the stage, in words; empty where a run has one phase."""
    metrics: Mapping[str, float]
    """The method's own, e.g. p per layer."""

    @property
    def share(self) -> float:
        """How much is done, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0
