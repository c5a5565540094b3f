"""Knowledge distillation (Hinton et al. 2015): the student imitates the softened output of frozen teachers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.losses.distillation import soft_target_loss
from kfrl.supervised.batches import Batch
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.methods.base import Method, Progress, Task, check_same_classes
from kfrl.supervised.teachers import teacher_logits


class KnowledgeDistillation(Method):
    """hard CE(y, z_s) + soft T^2 KL[softmax(z_t / T) || softmax(z_s / T)]; several teachers' targets are averaged."""

    takes_teachers = "some"

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """A plain student."""
        check_same_classes("kd", task, teachers)
        return super().build(task, teachers)

    def loss(self, net: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Both terms."""
        config = self.config.distillation
        logits = net(batch.images)
        targets = torch.stack([teacher_logits(teacher, batch.images) for teacher in self.teachers])
        soft = soft_target_loss(logits, targets, config.temperature).mean()
        return {
            "task": config.hard_weight * F.cross_entropy(logits, batch.labels),
            "distillation": config.soft_weight * soft,
        }


METHOD = KnowledgeDistillation
