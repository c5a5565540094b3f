"""What a method gets, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kfrl.tabular.config import TabularConfig
from kfrl.tabular.data import Cases, Labels, Preparation
from kfrl.tabular.students import Net
from kfrl.tabular.trees import Tree

Numbers = NDArray[np.float64]
Predictor = Callable[[Cases], Numbers]
"""Cases (n, attributes), prepared -> probabilities (n, classes)."""


@dataclass(frozen=True)
class Teacher:
    """A model that labels cases, and what is known beside it."""

    predict: Predictor
    others: Mapping[str, Predictor] = field(default_factory=dict)
    """What it was made from, to be compared with: its best single model."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Its size in numbers."""


@dataclass(frozen=True)
class Task:
    """One split: what may be learned from."""

    config: TabularConfig
    cases: Cases
    labels: Labels
    validation: NDArray[np.bool_]
    """(cases,): which the teacher's learners did not see."""
    classes: int
    preparation: Preparation
    generator: np.random.Generator
    say: Callable[[str], None]
    """Tells how far learning is."""

    def seed(self) -> int:
        """A fresh seed."""
        return int(self.generator.integers(2**31))

    @property
    def columns(self) -> Numbers:
        """The cases, encoded."""
        return self.preparation.encode(self.cases)


@dataclass(frozen=True)
class Learned:
    """A student, with what is worth scoring beside it."""

    student: Tree | Net
    others: Mapping[str, Predictor] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the models, by name."""
