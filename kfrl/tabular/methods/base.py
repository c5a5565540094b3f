"""The input and the result of a method for tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kfrl.tabular.config import TabularConfig
from kfrl.tabular.students import Net
from kfrl.tabular.tables import Cases, Labels, Preparation
from kfrl.tabular.trees import Tree

Numbers = NDArray[np.float64]
Predictor = Callable[[Cases], Numbers]
"""Cases (n, attributes), prepared -> probabilities (n, classes)."""


@dataclass(frozen=True)
class Teacher:
    """A tabular teacher: a model that labels cases."""

    predict: Predictor
    others: Mapping[str, Predictor] = field(default_factory=dict)
    """Models to compare it with, by name, e.g. the best single model of an ensemble."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Its size, e.g. `leaves_teacher`."""


@dataclass(frozen=True)
class SplitTask:
    """What a method learns on one split of a table."""

    config: TabularConfig
    cases: Cases
    labels: Labels
    validation: NDArray[np.bool_]
    """(cases,): which are held back from the teacher's learners."""
    classes: int
    preparation: Preparation
    generator: np.random.Generator
    say: Callable[[str], None]
    """Shows the progress."""

    def seed(self) -> int:
        """A new random seed."""
        return int(self.generator.integers(2**31))

    @property
    def columns(self) -> Numbers:
        """The encoded cases."""
        return self.preparation.encode(self.cases)


@dataclass(frozen=True)
class Learned:
    """The result of a method: a student, and other models to score beside it."""

    student: Tree | Net
    others: Mapping[str, Predictor] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    """Sizes of the models, by name."""
