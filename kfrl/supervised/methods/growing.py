"""Growing a brain (Wang, Ramanan and Hebert 2017): a trained net learns a new task with new units on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from kfrl.config import Count, Positive
from kfrl.errors import UserError
from kfrl.nets import arch_of
from kfrl.nets.images.classifier import Classifier
from kfrl.nets.images.grown import GrownNet
from kfrl.optim.groups import ParameterGroup
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Normalisation
from kfrl.supervised.methods.base import Method, Stage, Task


@dataclass(frozen=True)
class Settings:
    """Growing a brain: new units for a trained net."""

    grow: Literal["width", "depth", "both"] = "width"
    """New units beside the last hidden layer, a new layer above it, or both."""
    new_units: Count | None = None
    """S, number of new units beside the last hidden layer. Default: half as many as the layer has."""
    new_layer: Count | None = None
    """Units of the new layer. Default: as many as the last hidden layer has."""
    scale: Positive = 10.0
    """gamma of y = gamma h / |h|_2 at the start."""
    normalise: bool = True
    """Normalise the old units and the new ones, each by their norm."""
    new_lr: Positive = 10.0
    """Learning rate of the new parameters, as a multiple of --lr."""
    only_new: bool = False
    """Train the new parameters only; the teacher's are frozen."""


class Growing(Method[GrownNet]):
    """The student starts as the teacher without its head; new units and a new head have their own learning rate."""

    takes_teachers = "one"
    Settings = Settings

    @classmethod
    def default_net(cls, data_net: str, teachers: Sequence[Teacher]) -> str:
        """The teacher's net, to which units are added."""
        return teachers[0].card.net

    @classmethod
    def normalisation(cls, own: Normalisation, teachers: Sequence[Teacher]) -> Normalisation:
        """That of the teacher's images."""
        return Normalisation(teachers[0].card.mean, teachers[0].card.std)

    def build(self, task: Task, teachers: Sequence[Teacher]) -> GrownNet:
        """The teacher's net with new units.

        Raises:
            UserError: another net, or images of another shape.
        """
        (teacher,) = teachers
        if task.net != teacher.card.net:
            raise UserError(
                f"growing only adds units to teacher {teacher.name!r}, a {teacher.card.net}, so the student cannot be "
                f"{task.net}. Leave --net out; --new-units and --new-layer set the number of units."
            )
        if task.shape != teacher.card.input_shape:
            raise UserError(
                f"Teacher {teacher.name!r} was trained on images of {teacher.card.input_shape}, and those of "
                f"{task.data} are {task.shape}. A grown net keeps its input shape; --image-size resizes images."
            )
        base, own = cast(Classifier, teacher.net), self.own
        top = base.head.in_features
        net = GrownNet(
            len(task.classes),
            task.shape,
            arch_of(base),
            width=0 if own.grow == "depth" else own.new_units or max(1, top // 2),
            depth=0 if own.grow == "width" else own.new_layer or top,
            scale=own.scale if own.normalise else None,
        )
        net.take(base)
        return net

    def stages(self, net: GrownNet) -> Sequence[Stage]:
        """One stage: old layers at --lr, new ones at --new-lr times --lr."""
        old = net.old_parameters()
        known = set(map(id, old))
        new = ParameterGroup(tuple(p for p in net.parameters() if id(p) not in known), self.own.new_lr)
        groups = (new,) if self.own.only_new else (ParameterGroup(old), new)
        return (Stage("train", self.config.epochs, groups),)

    def train_mode(self, net: GrownNet, stage: int) -> None:
        """A frozen body is in evaluation mode, so that its batch norm statistics are frozen too."""
        net.train()
        if self.own.only_new:
            net.body.eval()


METHOD = Growing
