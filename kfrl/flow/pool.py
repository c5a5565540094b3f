"""A pool of teachers, of which some are linked. Reviews measure each teacher's worth; a bandit chooses the next one.

A review measures every linked teacher: the returns of games with all links, and of games from the same starts without
the teacher's links. The worth in a game is the difference, as a share of the mean return with the teacher. Then

    a teacher is removed  if its worth is not above 0 (one-sided t-test) at `GRACE` reviews in a row, or its share of p
                          is below `FAINT` at `FAINT_REVIEWS` reviews in a row;
    a teacher is added    to each free place, in the order of an index. Without a free place, once every linked teacher
                          has been linked for `GRACE` reviews, a teacher that was never linked, or whose mean worth is
                          above the lowest of the linked ones, replaces the linked teacher with the lowest mean worth.

A review whose games have no reward at all says nothing about any teacher, and changes no statistics.

The index is that of discounted UCB (Garivier & Moulines 2011): mean worth + C sqrt(log n / n_m), with n_m the
reviews of teacher m and n those of all teachers, both discounted. It is infinite for a teacher that was never linked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor, nn

from kfrl.errors import UserError

DISCOUNT = 0.95
C = 0.25
"""Weight of the bandit's bonus, in shares of the return."""
LEVEL = 0.1
"""Significance level of the test that a worth is above 0."""
GRACE = 2
"""Fewest reviews for which a teacher stays linked."""
FAINT, FAINT_REVIEWS = 0.02, 5


@dataclass(frozen=True)
class Measured:
    """The measurements of a linked teacher at a review."""

    share: float
    """r: the teacher's share of p, averaged over its layers."""
    returns: Tensor
    """(games,) returns with all links."""
    without: Tensor
    """(games,) returns from the same starts, without the teacher's links."""

    @property
    def worth(self) -> float:
        """The loss of return without the teacher, as a share of the larger mean return; in [-1, 1]."""
        lost = float((self.returns - self.without).mean())
        size = max(abs(float(self.returns.mean())), abs(float(self.without.mean())))
        return max(-1.0, min(1.0, lost / size)) if size else 0.0

    @property
    def rewarded(self) -> bool:
        """Whether any of the games had a reward."""
        return bool(self.returns.any() or self.without.any())

    @property
    def useful(self) -> bool:
        """Whether the worth is above 0, by a one-sided t-test on the differences of the games."""
        lost = self.returns - self.without
        mean, games = float(lost.mean()), len(lost)
        if games < 2 or mean <= 0.0:
            return False
        from scipy.special import stdtrit  # imported here: workers import this module and do not need it

        bound = float(stdtrit(games - 1, 1.0 - LEVEL))
        return mean > bound * float(lost.std()) / math.sqrt(games)


@dataclass(frozen=True)
class Change:
    """A teacher that is removed or added (`comes`), with the reason in words."""

    teacher: str
    comes: bool
    why: str


class TeacherPool(nn.Module):
    """The linked teachers and the results of reviews, as buffers, which checkpoints save and processes can share."""

    linked: Tensor
    """(N,) bool"""
    age: Tensor
    """(N,) number of reviews since the teacher was linked."""
    useless: Tensor
    """(N,) number of latest reviews in a row that found its worth not above 0."""
    faint: Tensor
    """(N,) number of latest reviews in a row that found its share below `FAINT`."""
    counts: Tensor
    """(N,) discounted number of its reviews."""
    worths: Tensor
    """(N,) discounted sum of its worth at these reviews."""
    reviews: Tensor
    """() number of all reviews."""
    barred: Tensor
    """(N,) bool; it is never linked."""

    def __init__(self, teachers: Sequence[str], places: int) -> None:
        """Link the first `places` of the `teachers`."""
        super().__init__()
        self.teachers, self.places = tuple(teachers), places
        count = len(self.teachers)
        self.register_buffer("linked", torch.arange(count) < places)
        for name in ("age", "useless", "faint"):
            self.register_buffer(name, torch.zeros(count, dtype=torch.int64))
        for name in ("counts", "worths"):
            self.register_buffer(name, torch.zeros(count, dtype=torch.float64))
        self.register_buffer("reviews", torch.zeros((), dtype=torch.int64))
        self.register_buffer("barred", torch.zeros(count, dtype=torch.bool))

    @property
    def present(self) -> tuple[str, ...]:
        """The linked teachers."""
        return tuple(compress(self.teachers, self.linked.tolist()))

    @property
    def absent(self) -> frozenset[str]:
        """The teachers that are not linked."""
        return frozenset(self.teachers) - frozenset(self.present)

    @property
    def _waiting(self) -> list[str]:
        places = (~self.linked & ~self.barred).tolist()
        return list(compress(self.teachers, places))

    def bar(self, teachers: Collection[str]) -> None:
        """Leave out `teachers` for good; the first ones of the others are linked. For a pool without reviews yet.

        Raises:
            UserError: the others are fewer than the places.
        """
        self.barred |= torch.tensor([name in teachers for name in self.teachers])
        usable = len(self.teachers) - int(self.barred.sum())
        if usable < self.places:
            raise UserError(
                f"The pool has {usable} usable teachers for {self.places} places. Name more teachers, or give "
                f"--linked-teachers {usable}."
            )
        self.linked.copy_(~self.barred & ((~self.barred).cumsum(0) <= self.places))

    def mean_worth(self, teacher: str) -> float:
        """The discounted mean of its worth over its reviews; infinite if it was never linked."""
        place = self.teachers.index(teacher)
        return float(self.worths[place] / self.counts[place]) if self.counts[place] else math.inf

    def index(self, teacher: str) -> float:
        """The bandit's index of a teacher."""
        count, total = float(self.counts[self.teachers.index(teacher)]), float(self.counts.sum())
        bonus = C * math.sqrt(max(0.0, math.log(total)) / count) if count else 0.0
        return self.mean_worth(teacher) + bonus

    def record(self, found: Mapping[str, Measured]) -> None:
        """Record a review of all linked teachers."""
        self.reviews += 1
        if not any(measured.rewarded for measured in found.values()):
            return
        self.counts *= DISCOUNT
        self.worths *= DISCOUNT
        for teacher, measured in found.items():
            place = self.teachers.index(teacher)
            self.age[place] += 1
            self.counts[place] += 1.0
            self.worths[place] += measured.worth
            self.useless[place] = 0 if measured.useful else self.useless[place] + 1
            self.faint[place] = 0 if measured.share >= FAINT else self.faint[place] + 1

    def changes(self, newcomers: bool) -> list[Change]:
        """The teachers to remove and to add after the last recorded review; `make` carries the changes out.

        Args:
            newcomers: Whether teachers may be added.
        """
        gone = [Change(name, False, why) for name in self.present if (why := self._why_useless(name))]
        return gone + (self._arrivals({change.teacher for change in gone}) if newcomers else [])

    def make(self, changes: Sequence[Change]) -> None:
        """Carry out changes: link the added teachers and unlink the removed ones."""
        for change in changes:
            place = self.teachers.index(change.teacher)
            self.linked[place] = change.comes
            for counter in (self.age, self.useless, self.faint):
                counter[place] = 0

    def _why_useless(self, teacher: str) -> str:
        place = self.teachers.index(teacher)
        if int(self.useless[place]) >= GRACE:
            return f"the return is no worse without it at {int(self.useless[place])} reviews in a row"
        if int(self.faint[place]) >= FAINT_REVIEWS:
            return f"its share of p is below {FAINT:g} at {int(self.faint[place])} reviews in a row"
        return ""

    def _arrivals(self, gone: set[str]) -> list[Change]:
        """The teachers for the free places; without a free place, at most one replacement."""
        stay = [name for name in self.present if name not in gone]
        waiting = sorted(self._waiting, key=lambda name: -self.index(name))
        free = self.places - len(stay)
        if free:
            return [self._arrival(name) for name in waiting[:free] if self.index(name) > 0.0]
        settled = all(int(self.age[self.teachers.index(name)]) >= GRACE for name in stay)
        least, first = min(stay, key=self.mean_worth), max(waiting, key=self.mean_worth, default=None)
        if not settled or first is None or self.mean_worth(first) <= self.mean_worth(least):
            return []
        return [Change(least, False, f"it makes room for {first}"), self._arrival(first)]

    def _arrival(self, teacher: str) -> Change:
        worth = self.mean_worth(teacher)
        return Change(teacher, True, "it was never linked" if worth == math.inf else f"its mean worth is {worth:.2f}")
