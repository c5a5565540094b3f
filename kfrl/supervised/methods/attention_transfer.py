"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017): the student's attention maps follow the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import NonNegative
from kfrl.errors import UserError
from kfrl.flow import hidden_layers
from kfrl.losses.distillation import attention_loss
from kfrl.nets.hooks import activation_of, features_of, layer_shapes, with_features
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Method, Progress, Task


@dataclass(frozen=True)
class Settings:
    """Attention transfer."""

    attention_weight: NonNegative = 1000.0
    """beta; beta / 2 is the weight of the distance of two maps, a mean over positions (paper: 1000)."""


class AttentionTransfer(Method):
    """L = CE + beta / 2 sum_j ||a_j - a'_j||^2 / (h w), with j the last layer of each size of the student's maps."""

    takes_teachers = "one"
    Settings = Settings

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """A plain student. The teacher may have other classes: its logits are not used.

        Raises:
            UserError: the two nets have no maps of equal size.
        """
        student = super().build(task, teachers).to(self.config.device)
        (teacher,) = teachers
        example = torch.zeros(2, *task.shape, device=self.config.device)
        own, theirs = _last_maps(student, example), _last_maps(teacher.net, example)
        self.pairs = [(own[size], theirs[size]) for size in own if size in theirs]
        if not self.pairs:
            raise UserError(
                f"attention-transfer compares maps of one size, and {task.net} and teacher {teacher.name!r} "
                f"({teacher.card.net}) have none in common (student: {_words(own)}; teacher: {_words(theirs)}). "
                "Take convolutional nets with maps of equal sizes, e.g. ResNets."
            )
        return student

    def losses(self, net: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq. 2 of the paper, in the form of the authors' code."""
        teacher = self.teachers[0].net
        with torch.no_grad():
            taught = features_of(teacher, [theirs for _, theirs in self.pairs], batch.images)
        logits, maps = with_features(net, [own for own, _ in self.pairs], batch.images)
        distance = sum(
            attention_loss(activation_of(net, own, maps[own]), activation_of(teacher, theirs, taught[theirs])).mean()
            for own, theirs in self.pairs
        )
        weight: float = self.own.attention_weight / 2
        return {"task": F.cross_entropy(logits, batch.labels), "attention": weight * torch.as_tensor(distance)}


def _last_maps(net: nn.Module, example: Tensor) -> dict[tuple[int, ...], str]:
    """Height and width -> the last hidden layer with maps of that size."""
    return {
        shape[1:]: layer for layer, shape in layer_shapes(net, hidden_layers(net), example).items() if len(shape) == 3
    }


def _words(layers: dict[tuple[int, ...], str]) -> str:
    return ", ".join(f"{layer} {height}x{width}" for (height, width), layer in layers.items()) or "no maps"


METHOD = AttentionTransfer
