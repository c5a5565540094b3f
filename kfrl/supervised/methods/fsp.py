"""FSP (Yim et al., CVPR 2017, "A Gift from Knowledge Distillation"): the flow between layers, then the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import Fraction, Positive
from kfrl.errors import UserError
from kfrl.flow import hidden_layers
from kfrl.losses.distillation import fsp_loss, fsp_matrix
from kfrl.nets.hooks import activation_of, layer_shapes, parameters_before, with_features
from kfrl.optim.groups import ParameterGroup
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Method, Progress, Stage, Task, first_stage_epochs

Size = tuple[int, int]
L = TypeVar("L")

POOLS: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "max": F.adaptive_max_pool2d,
    "avg": F.adaptive_avg_pool2d,
}


@dataclass(frozen=True)
class Settings:
    """FSP: the flow between layers first, then the labels."""

    fsp_share: Fraction = 0.25
    """Share of the epochs that the first stage takes, at least one of them."""
    fsp_weight: Positive = 1.0
    """Weight of the FSP loss, a mean over a matrix."""
    fsp_pool: Literal["max", "avg", "none"] = "max"
    """Pooling of the larger of two maps to the size of the smaller: max (paper), avg, or none, which refuses such
    maps."""


class Fsp(Method):
    """Stage 1: FSP matrices of the student's consecutive maps imitate the teacher's; stage 2: cross-entropy."""

    takes_teachers = "one"
    Settings = Settings

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """A plain student. The teacher may have other classes: its logits are not used.

        Raises:
            UserError: nets whose matrices cannot be compared, or maps of different size and no pooling.
        """
        student = super().build(task, teachers).to(self.config.device)
        (teacher,) = teachers
        self.example = torch.zeros(2, *task.shape, device=self.config.device)
        own, theirs = self._maps(student), self._maps(teacher.net)
        pairs = [pair for size in own if size in theirs for pair in _by_depth(own[size], theirs[size])]
        if len(pairs) < 2:
            raise UserError(
                f"fsp compares the flow between maps, and {task.net} and teacher {teacher.name!r} ({teacher.card.net}) "
                f"have fewer than two layers with maps of the same size (student: {_words(own)}; teacher: "
                f"{_words(theirs)}). Take convolutional nets with maps of equal sizes, e.g. ResNets."
            )
        for (layer, channels), (other, as_many) in pairs:
            if channels != as_many:
                raise UserError(
                    "fsp compares matrices of channels by channels, so corresponding layers need equal numbers of "
                    f"channels: {layer} of the student has {channels}, {other} of teacher {teacher.name!r} {as_many}. "
                    "Take a student of the teacher's width, e.g. ResNets."
                )
        self.layers = [layer for (layer, _), _ in pairs]
        self.teacher_layers = [layer for _, (layer, _) in pairs]
        self._check_sizes({layer: size for size, layers in own.items() for layer, _ in layers})
        return student

    def _maps(self, net: nn.Module) -> dict[Size, list[tuple[str, int]]]:
        """(H, W) -> the hidden layers with maps of that size and their channels, input side first."""
        found: dict[Size, list[tuple[str, int]]] = {}
        layers = hidden_layers(net)
        shapes = layer_shapes(net, layers, self.example)
        for layer in layers:
            if len(shapes[layer]) == 3:
                channels, height, width = shapes[layer]
                found.setdefault((height, width), []).append((layer, channels))
        return found

    def _check_sizes(self, sizes: Mapping[str, Size]) -> None:
        if self.own.fsp_pool != "none":
            return
        for first, second in pairwise(self.layers):
            if sizes[first] != sizes[second]:
                one, other = ("x".join(map(str, sizes[layer])) for layer in (first, second))
                raise UserError(
                    f"An FSP matrix needs maps of one size, but {first} is {one} and {second} {other}. --fsp-pool max "
                    "(the paper's) or avg makes them equal."
                )

    def stages(self, net: nn.Module) -> Sequence[Stage]:
        """The FSP matrices, then the labels."""
        epochs = first_stage_epochs("fsp", self.config.epochs, self.own.fsp_share)
        below = parameters_before(net, self.layers, self.example)
        return (
            Stage("fsp", epochs, (ParameterGroup(below),)),
            Stage("task", self.config.epochs - epochs, (ParameterGroup(tuple(net.parameters())),)),
        )

    def losses(self, net: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq. 2 of the paper, then the cross-entropy alone."""
        if progress.stage == 1:
            return super().losses(net, batch, progress)
        with torch.no_grad():
            wanted = self._matrices(self.teachers[0].net, self.teacher_layers, batch.images)
        own = self._matrices(net, self.layers, batch.images)
        return {"fsp": self.own.fsp_weight * fsp_loss(own, wanted).mean()}

    def _matrices(self, net: nn.Module, layers: Sequence[str], images: Tensor) -> list[Tensor]:
        _, features = with_features(net, layers, images)
        maps = [activation_of(net, layer, features[layer]) for layer in layers]
        return [fsp_matrix(*self._same_size(first, second)) for first, second in pairwise(maps)]

    def _same_size(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if first.shape[2:] == second.shape[2:]:
            return first, second
        size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
        pool = POOLS[self.own.fsp_pool]
        return pool(first, size), pool(second, size)


def _by_depth(own: Sequence[L], theirs: Sequence[L]) -> list[tuple[L, L]]:
    """Pairs of layers at the same relative depth, as many as the shorter side has."""
    count = min(len(own), len(theirs))
    at = [[round(j * len(side) / count) - 1 for j in range(1, count + 1)] for side in (own, theirs)]
    return [(own[one], theirs[other]) for one, other in zip(*at, strict=True)]


def _words(maps: Mapping[Size, object]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in maps) or "none"


METHOD = Fsp
