"""How the teachers' influence ends: the schedule of lambda_1, and the hand-over."""

from __future__ import annotations

from dataclasses import dataclass

from kfrl.errors import UserError


def dependence_weight(progress: float, final: float) -> float:
    """lambda_1(t): 0 at the start, linearly to `final` at the end (section 4.1). `progress` is in [0, 1]."""
    return final * progress


@dataclass(frozen=True)
class HandOver:
    """A ramp that forces p of the student to exactly 1, whatever the losses did.

    The paper's 40M steps let p creep to 1; a run of any other length hands over on purpose. `end=None` leaves p to the
    losses alone, as the paper does.
    """

    start: float
    end: float | None

    def __post_init__(self) -> None:
        """Refuse a ramp that is none.

        Raises:
            UserError: it ends where it starts, or before, and not at the very beginning.
        """
        if self.end and self.end <= self.start:
            raise UserError(
                f"--independence-at {self.end:g} is not after --handover-start {self.start:g}: the teachers would be "
                f"dropped in one step. Give an earlier --handover-start, e.g. {self.end / 3:.2g}."
            )

    def __call__(self, progress: float) -> float:
        """The share of the teachers' weight that the student has taken over: 0 before `start`, 1 from `end` on.

        What the teachers keep falls with the third power of the time left, because unless their pre-activations are
        matched to the student's they are far larger: a straight ramp leaves them in charge until its last percents,
        and then drops the student.
        """
        if self.end is not None and progress >= self.end:
            return 1.0
        if self.end is None or progress <= self.start:
            return 0.0
        return 1.0 - ((self.end - progress) / (self.end - self.start)) ** 3
