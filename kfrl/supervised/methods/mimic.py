"""Mimic learning (Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?"): regression on the teacher's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kfrl.losses.distillation import mimic_loss
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Method, Progress, Task, check_same_classes
from kfrl.supervised.teachers import teacher_logits


class Mimic(Method):
    """1/(2B) sum ||g(x) - z||^2, without the labels; of several teachers z is the mean."""

    takes_teachers = "some"
    takes_answers = True

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """A plain student."""
        check_same_classes("mimic", task, teachers)
        return super().build(task, teachers)

    def losses(self, net: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq. 1 of the paper."""
        wanted = torch.stack([teacher_logits(teacher, batch) for teacher in self.teachers]).mean(0)
        return {"mimic": mimic_loss(net(batch.images), wanted).mean()}


METHOD = Mimic
