"""Schedules that end the teachers' influence: that of lambda_1, and the hand-over."""

from __future__ import annotations

from dataclasses import dataclass

from kfrl.errors import UserError


def dependence_weight(progress: float, final: float) -> float:
    """lambda_1(t): rises linearly from 0 to `final` (section 4.1). `progress` is in [0, 1]."""
    return final * progress


@dataclass(frozen=True)
class HandOver:
    """A ramp that brings p of the student to exactly 1, independent of the losses.

    In the paper, p approaches 1 over 40M steps; a shorter run needs the ramp. With `end=None` only the losses change
    p, as in the paper.
    """

    start: float
    end: float | None

    def __post_init__(self) -> None:
        """Refuse a ramp that does not end after its start.

        Raises:
            UserError: `end` is not after `start`, and not 0.
        """
        if self.end and self.end <= self.start:
            raise UserError(
                f"--independence-at {self.end:g} is not after --handover-start {self.start:g}: the teachers would be "
                f"dropped in one step. Give an earlier --handover-start, e.g. {self.end / 3:.2g}."
            )

    def __call__(self, progress: float) -> float:
        """The share of the teachers' p that moves to the student: 0 before `start`, 1 from `end` on.

        The teachers' share falls with the third power of the remaining time. If the scales are not matched, the
        teachers' pre-activations are much larger than the student's: with a linear ramp they would dominate until its
        last percents, and the student's score would then drop.
        """
        if self.end is not None and progress >= self.end:
            return 1.0
        if self.end is None or progress <= self.start:
            return 0.0
        return 1.0 - ((self.end - progress) / (self.end - self.start)) ** 3
