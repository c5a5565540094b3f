"""Knowledge distillation (Hinton et al. 2015): the student imitates the softened output of frozen teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Method, Progress, SoftTargets, Task, check_same_classes, distillation_terms
from kfrl.supervised.teachers import teacher_logits


@dataclass(frozen=True)
class Settings(SoftTargets):
    """Knowledge distillation."""


class KnowledgeDistillation(Method):
    """The labels and the teachers' soft targets, see `distillation_terms`."""

    takes_teachers = "some"
    takes_answers = True
    Settings = Settings

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """A plain student."""
        check_same_classes("kd", task, teachers)
        return super().build(task, teachers)

    def losses(self, net: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Both terms."""
        targets = [teacher_logits(teacher, batch) for teacher in self.teachers]
        return distillation_terms(self.own, net(batch.images), batch.labels, targets)


METHOD = KnowledgeDistillation
