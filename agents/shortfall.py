"""How far a student's games are below its teacher's score."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import fmean

from agents.teachers.formats import Teacher
from envs.games import Game
from kfrl.compare.stats import reference_of

LATEST = 100
"""Games of the student that are compared with its teacher's score."""
FIRST = 30
"""Games of a student that say what its teacher is worth, where no score does."""


class Shortfall:
    """QDagger's 1 - G_student / G_teacher (Agarwal et al. 2022), with both returns above random play's.

    Scores under another frame cap or of another flavour than the run's say nothing. Where the student starts with the
    teacher's whole policy, its first games take the place of such a score.
    """

    def __init__(self, teacher: Teacher | None, game: str, cap: int) -> None:
        """Count no game yet.

        Args:
            teacher: Whose score it is about; None: the shortfall is unknown.
            game: The run's game.
            cap: Frames after which the run's games end.
        """
        self._teacher, self._game = teacher, game
        self.unknown = "" if teacher is None else _incomparable(teacher, game, cap)
        """Why the teacher's score says nothing, after its name; empty if it does."""
        reference = reference_of(game, cap)
        self._random = reference.random if reference else None
        self._latest: deque[float] = deque(maxlen=LATEST)
        self._first: list[float] = []
        self._plays_as_taught = False

    def begin(self, *, plays_as_taught: bool) -> None:
        """Forget the games of an earlier phase. `plays_as_taught`: the student starts with the whole policy."""
        self._latest.clear()
        self._first.clear()
        self._plays_as_taught = plays_as_taught

    def count(self, scores: Iterable[float]) -> None:
        """Count games of the student, in the order in which they ended."""
        for score in scores:
            self._latest.append(score)
            if len(self._first) < FIRST:
                self._first.append(score)

    def share(self) -> float:
        """The shortfall in [0, 1]: 1 while a score is unknown, 0 below a teacher that is no better than random play."""
        score = self._first_score() if self.unknown else self._score
        if score is None or not self._latest:
            return 1.0
        if not self._beats_random_play(score):
            return 0.0
        floor = self._random or 0.0
        if score <= floor:
            return 0.0 if self.unknown else 1.0
        return min(1.0, max(0.0, (score - fmean(self._latest)) / (score - floor)))

    def note(self) -> str:
        """Why the shortfall will not depend on the student's games, or is 0 from the start; else empty."""
        if self._teacher is None:
            return ""
        if self.unknown:
            return (
                f"Teacher {self._teacher.name} {self.unknown}: how far the student is behind it is not known. If the "
                f"fold has the whole policy, the student's first {FIRST} games take the place of that score. Else the "
                "kickstart falls with the steps alone; for one that ends when the student has the teacher's score, "
                "give a teacher that was scored under the run's --protocol."
            )
        if not self._beats_random_play(self._score):
            return (
                f"Teacher {self._teacher.name} scored {self._score:,.1f}, no more than random play. The student is not "
                "held near the linked net, and --kickstart-coef has no effect."
            )
        return ""

    @property
    def _score(self) -> float | None:
        return None if self._teacher is None else self._teacher.card.mean_score

    def _first_score(self) -> float | None:
        return fmean(self._first) if self._plays_as_taught and len(self._first) == FIRST else None

    def _beats_random_play(self, score: float | None) -> bool:
        return score is None or self._random is None or score > self._random


def _incomparable(teacher: Teacher, game: str, cap: int) -> str:
    theirs = teacher.card.scored_under.get("max_frames")
    if teacher.card.game != game:
        return f"has its score in another flavour, {Game(teacher.card.game).title}"
    if teacher.card.mean_score is None:
        return "has no score"
    if theirs is None:
        return "has a score whose frame cap is not known"
    if theirs != cap:
        return f"has a score with games of at most {theirs:,} frames, and this run's end after {cap:,}"
    return ""
