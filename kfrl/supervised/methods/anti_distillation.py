"""Anti-Distillation (Petrushina et al. 2022): a trained net, grown wider, learns on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from kfrl.nets.images.classifier import Classifier
from kfrl.nets.images.widen import grow
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.methods.base import Method, Task


class AntiDistillation(Method):
    """The student starts as its teacher, grown; then it learns from the labels alone."""

    takes_teachers = "one"
    config_groups = ("growth",)

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """A net as large as --net, with all of the teacher's weights in it, its head's too (section 4: w[u] = u).

        Raises:
            UserError: a teacher that does not fit into --net.
        """
        student = cast(Classifier, super().build(task, teachers))
        (teacher,) = teachers
        grow(cast(Classifier, teacher.net), student, self.config.growth.extension, self.config.growth.theta)
        return student


METHOD = AntiDistillation
