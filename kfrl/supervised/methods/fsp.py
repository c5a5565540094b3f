"""FSP (Yim et al., CVPR 2017, "A Gift from Knowledge Distillation"): the flow between layers, then the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.flow import links_by_depth
from kfrl.losses.distillation import fsp_loss, fsp_matrix
from kfrl.nets.features import layer_shapes, parameters_before, with_features
from kfrl.supervised.batches import Batch
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.methods.base import Method, ParameterGroup, Progress, Stage, Task, first_stage_epochs

POOLS: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "max": F.adaptive_max_pool2d,
    "avg": F.adaptive_avg_pool2d,
}


class Fsp(Method):
    """Stage 1: FSP matrices between consecutive maps of the student meet the teacher's; stage 2: cross-entropy."""

    takes_teachers = "one"

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """A plain student. The teacher may have other classes: its logits are not read.

        Raises:
            UserError: nets whose matrices cannot be compared, or maps of different size and no pooling.
        """
        student = super().build(task, teachers).to(self.config.device)
        (teacher,) = teachers
        self.example = torch.zeros(2, *task.shape, device=self.config.device)
        links = links_by_depth(student, {teacher.name: teacher.net})
        own = layer_shapes(student, [link.student for link in links], self.example)
        theirs = layer_shapes(teacher.net, [link.layer for link in links], self.example)
        maps = [link for link in links if len(own[link.student]) == len(theirs[link.layer]) == 3]
        if len(maps) < 2:
            raise UserError(
                f"fsp compares the flow between maps, and {task.net} and teacher {teacher.name!r} "
                f"({teacher.card.net}) have fewer than two layers with maps that correspond. Take convolutional nets."
            )
        self.layers = [link.student for link in maps]
        self.teacher_layers = [link.layer for link in maps]
        for name, layers, shapes in (("student", self.layers, own), ("teacher", self.teacher_layers, theirs)):
            self._check_sizes(name, [(layer, shapes[layer]) for layer in layers])
        for link in maps:
            if own[link.student][0] != theirs[link.layer][0]:
                raise UserError(
                    f"fsp compares matrices of channels by channels, so layers that correspond need as many: "
                    f"{link.student} of the student has {own[link.student][0]}, {link.layer} of teacher "
                    f"{teacher.name!r} {theirs[link.layer][0]}. Take a student of the teacher's width, e.g. ResNets."
                )
        return student

    def _check_sizes(self, name: str, layers: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        if self.config.fsp.fsp_pool != "none":
            return
        for (first, one), (second, other) in pairwise(layers):
            if one[1:] != other[1:]:
                raise UserError(
                    f"An FSP matrix joins maps of one size, but {first} of the {name} is {one[1]}x{one[2]} and "
                    f"{second} {other[1]}x{other[2]}. --fsp-pool max (the paper's) or avg brings them together."
                )

    def stages(self, net: nn.Module) -> Sequence[Stage]:
        """The flow, then the labels."""
        epochs = first_stage_epochs("fsp", self.config.epochs, self.config.fsp.fsp_share)
        below = parameters_before(net, self.layers, self.example)
        return (
            Stage("fsp", epochs, (ParameterGroup(below),)),
            Stage("task", self.config.epochs - epochs, (ParameterGroup(tuple(net.parameters())),)),
        )

    def loss(self, net: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq. 2 of the paper, then the cross-entropy alone."""
        if progress.stage == 1:
            return super().loss(net, batch, progress)
        with torch.no_grad():
            wanted = self._matrices(self.teachers[0].net, self.teacher_layers, batch.images)
        own = self._matrices(net, self.layers, batch.images)
        return {"fsp": self.config.fsp.fsp_weight * fsp_loss(own, wanted).mean()}

    def _matrices(self, net: nn.Module, layers: Sequence[str], images: Tensor) -> list[Tensor]:
        _, features = with_features(net, layers, images)
        maps = [F.relu(features[layer]) for layer in layers]
        return [fsp_matrix(*self._same_size(first, second)) for first, second in pairwise(maps)]

    def _same_size(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if first.shape[2:] == second.shape[2:]:
            return first, second
        size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
        pool = POOLS[self.config.fsp.fsp_pool]
        return pool(first, size), pool(second, size)


METHOD = Fsp
