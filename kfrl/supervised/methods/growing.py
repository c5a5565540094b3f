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
    """How a net grows."""

    grow: Literal["width", "depth", "both"] = "width"
    """New units beside the last hidden layer, a new layer above it, or both."""
    new_units: Count | None = None
    """S, how many beside the last hidden layer. Default: half as many as it has."""
    new_layer: Count | None = None
    """Units of the new layer. Default: as many as the last hidden layer has."""
    scale: Positive = 10.0
    """gamma of y = gamma h / |h|_2 at the start."""
    normalise: bool = True
    """Normalise the old units and the new ones, each by their norm."""
    new_lr: Positive = 10.0
    """Learning rate of what is new, as a multiple of --lr."""
    only_new: bool = False
    """Leave what the teacher has learned as it is."""


class Growing(Method[GrownNet]):
    """Starts as the teacher without its head; new units and a new head learn at a rate of their own."""

    takes_teachers = "one"
    Settings = Settings

    @classmethod
    def default_net(cls, data_net: str, teachers: Sequence[Teacher]) -> str:
        """The teacher's, to which units are added."""
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
                f"growing adds to teacher {teacher.name!r}, a {teacher.card.net}, and takes nothing away, so the "
                f"student cannot be {task.net}. Leave --net out; --new-units and --new-layer say how much it grows."
            )
        if task.shape != teacher.card.input_shape:
            raise UserError(
                f"Teacher {teacher.name!r} has learned images of {teacher.card.input_shape}, and those of {task.data} "
                f"are {task.shape}. A net that grows keeps its input; --image-size resizes images."
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
        """One: the old layers at --lr, the new ones at --new-lr times that."""
        old = net.old_parameters()
        known = set(map(id, old))
        new = ParameterGroup(tuple(p for p in net.parameters() if id(p) not in known), self.own.new_lr)
        groups = (new,) if self.own.only_new else (ParameterGroup(old), new)
        return (Stage("train", self.config.epochs, groups),)

    def train_mode(self, net: GrownNet, stage: int) -> None:
        """A body that does not learn is as in evaluation: its batch statistics stay too."""
        net.train()
        if self.own.only_new:
            net.body.eval()


METHOD = Growing
