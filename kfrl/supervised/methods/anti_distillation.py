"""Anti-Distillation (Petrushina et al. 2022): a trained net is grown wider and trained further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn

from kfrl.config import Positive
from kfrl.nets.images.classifier import Classifier
from kfrl.nets.images.widen import grow
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.methods.base import Method, Task


@dataclass(frozen=True)
class Settings:
    """Anti-distillation: a trained net grown wider."""

    extension: Literal["zero", "uniform"] = "zero"
    """Initial values of the new weights: zero, or uniform in [0, theta]."""
    theta: Positive = 0.01
    """uniform: the upper bound of U[0, theta]."""


class AntiDistillation(Method):
    """The student starts as its grown teacher, and then learns from the labels alone."""

    takes_teachers = "one"
    Settings = Settings

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """A net of the size of --net with all of the teacher's weights, the head's too (section 4: w[u] = u).

        Raises:
            UserError: a teacher that does not fit into --net.
        """
        student = cast(Classifier, super().build(task, teachers))
        (teacher,) = teachers
        grow(cast(Classifier, teacher.net), student, self.own.extension, self.own.theta)
        return student


METHOD = AntiDistillation
