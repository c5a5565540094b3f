"""Learning without forgetting (Li and Hoiem 2016): a trained net learns a new task and keeps its old one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import Direction, Fraction, NonNegative, Positive
from kfrl.errors import UserError
from kfrl.losses.distillation import cross_entropy, directed_kl
from kfrl.nets.images.classifier import Classifier
from kfrl.nets.memory_format import channels_last
from kfrl.optim.groups import ParameterGroup
from kfrl.supervised.classifiers import Card, Teacher
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch, Loader, Normalisation
from kfrl.supervised.methods.base import (
    Elsewhere,
    Progress,
    Stage,
    Task,
    first_stage_epochs,
)
from kfrl.supervised.methods.fine_tune import FineTune
from kfrl.supervised.old_data import old_images
from kfrl.supervised.teachers import teacher_logits
from kfrl.training.ranks import ranks

NOT_COUNTED = "none"


@dataclass(frozen=True)
class Settings:
    """Learning without forgetting."""

    variant: Literal["lwf", "fine-tuning", "feature-extraction", "joint-training"] = "lwf"
    """lwf, or a baseline of the paper: fine-tuning (no loss on the old task), feature-extraction (the body is frozen),
    joint-training (also trains on the old task's images)."""
    old_weight: NonNegative = 1.0
    """lambda_o, weight of the old task's loss (lwf, joint-training)."""
    old_temperature: Positive = 2.0
    """T of lwf's old loss."""
    kl_direction: Direction = "forward"
    """Of lwf's old loss. forward: KL[recorded || student], as in the paper; reverse: KL[student || recorded]; mixed:
    their mean."""
    warm_up: Fraction = 0.5
    """Share of the epochs in which only the new head trains, at least one epoch; 0: none."""
    old_data: str = ""
    """The old task's images, a data set or a folder, on which the old head is scored, and joint-training trains. none:
    only the new task is scored. Default: the teacher's data set."""


class Heads(nn.Module):
    """Two heads on one body: logits of the old classes, then those of the new ones."""

    def __init__(self, old: nn.Linear, new: nn.Linear) -> None:
        """Take two layers that read the same features."""
        super().__init__()
        self.old, self.new = old, new

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, K_old + K_new)."""
        return torch.cat([self.old(features), self.new(features)], 1)


@dataclass(frozen=True)
class OldTask:
    """The images of the old task, which the teacher has learned."""

    train: Loader
    validation: Loader
    test: Loader


class LearningWithoutForgetting(FineTune):
    """L = L_new + lambda_o L_old, with L_old = -sum_i y'_i log yhat'_i at temperature T, on the new task's images.

    y' is the frozen teacher's output for the same image. There is no T^2 before L_old, as in the authors' code.
    """

    Settings = Settings

    def __init__(self, config: SupervisedConfig) -> None:
        """Keep the settings."""
        super().__init__(config)
        self._old: OldTask | None = None

    @classmethod
    def normalisation(cls, own: Normalisation, teachers: Sequence[Teacher]) -> Normalisation:
        """That of the old task's images, which the net was trained with."""
        return Normalisation(teachers[0].card.mean, teachers[0].card.std)

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """The teacher's net with both heads.

        Raises:
            UserError: a net or images of another shape, or an old task whose images cannot be loaded.
        """
        net = super().build(task, teachers)
        (teacher,) = teachers
        new, old = net.get_submodule("head"), copy.deepcopy(teacher.net.get_submodule("head"))
        assert isinstance(new, nn.Linear) and isinstance(old, nn.Linear)
        nn.init.xavier_uniform_(new.weight)
        nn.init.zeros_(new.bias)
        net.add_module("head", Heads(old.requires_grad_(True), new))
        self._old = self._old_task(task, teacher.card, channels_last(net))
        return net

    def _old_task(self, task: Task, card: Card, maps: bool) -> OldTask | None:
        if (self.own.old_data or card.data) == NOT_COUNTED:
            if self.own.variant == "joint-training":
                raise UserError(
                    "joint-training trains on the old task's images, and --old-data is none. Give --old-data FOLDER."
                )
            return None
        leave_out = "--old-data none, and only the new task is scored"
        parts = old_images(self.own.old_data, card, self.config, self.config.image_size, leave_out)
        if parts[0].shape != task.shape:
            name = self.own.old_data or card.data
            raise UserError(
                f"The images of {name} are of shape {parts[0].shape}, and those of {task.data} of {task.shape}. "
                "--image-size N resizes both."
            )
        device = torch.device(self.config.device)
        train, validation, test = (
            Loader(part.to(device), self.config.batch_size, task.normalisation, maps, ranks=ranks()) for part in parts
        )
        augmented = self.config.augment != "none"
        pad, flip = self.config.pad if augmented else 0, self.config.augment == "crop-flip"
        return OldTask(replace(train, pad=pad, flip=flip), validation, test)

    def stages(self, net: nn.Module) -> Sequence[Stage]:
        """The new head alone, then all parameters; in feature extraction the new head alone."""
        heads = _heads(net)
        new = ParameterGroup(tuple(heads.new.parameters()))
        if self.own.variant == "feature-extraction":
            return (Stage("new head", self.config.epochs, (new,)),)
        idle = set(map(id, heads.old.parameters())) if self.own.variant == "fine-tuning" else set()
        everything = ParameterGroup(tuple(p for p in net.parameters() if id(p) not in idle))
        if not self.own.warm_up:
            return (Stage("train", self.config.epochs, (everything,)),)
        first = first_stage_epochs("lwf", self.config.epochs, self.own.warm_up)
        return (Stage("new head", first, (new,)), Stage("train", self.config.epochs - first, (everything,)))

    def train_mode(self, net: nn.Module, stage: int) -> None:
        """While only the new head trains, the net is in evaluation mode, so that batch norm statistics are frozen."""
        net.train(self.stages(net)[stage].name != "new head")

    def losses(self, net: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The new task's loss, and once the body trains the old task's."""
        if self.stages(net)[progress.stage].name == "new head":
            return {"task": F.cross_entropy(_split(net, batch.images)[1], batch.labels)}
        if self.own.variant == "joint-training":
            return self._joint(net, batch)
        old, new = _split(net, batch.images)
        terms = {"task": F.cross_entropy(new, batch.labels)}
        if self.own.variant == "lwf":
            recorded, temperature = teacher_logits(self.teachers[0], batch), self.own.old_temperature
            sides = old / temperature, recorded / temperature
            # Without the entropy of the recorded outputs, a constant, as in the paper.
            forward = self.own.kl_direction == "forward"
            loss = cross_entropy(*sides) if forward else directed_kl(*sides, self.own.kl_direction)
            terms["old"] = self.own.old_weight * loss.mean()
        return terms

    def _joint(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Both tasks' losses in one pass: the batch, and as many images of the old task, drawn at random."""
        assert self._old is not None
        drawn, count = self._old.train.random(len(batch.labels)), len(batch.labels)
        old, new = _split(net, torch.cat([batch.images, drawn.images]))
        return {
            "task": F.cross_entropy(new[:count], batch.labels),
            "old": self.own.old_weight * F.cross_entropy(old[count:], drawn.labels),
        }

    def export(self, net: nn.Module) -> nn.Module:
        """The new task's classifier."""
        return _with_head(net, "new")

    def elsewhere(self, net: nn.Module, final: bool) -> Mapping[str, Elsewhere]:
        """The old task, on its own images."""
        if self._old is None:
            return {}
        images = self._old.test if final else self._old.validation
        if not len(images.images):
            return {}
        return {"old": Elsewhere(_with_head(net, "old").eval(), images, self.teachers[0].card.classes)}

    def further(self, net: nn.Module) -> Mapping[str, tuple[nn.Module, Card]]:
        """The old task's classifier."""
        card = self.teachers[0].card
        made = replace(
            card,
            method=self.config.label,
            seed=self.config.seed,
            teachers=(self.teachers[0].name,),
            teacher_sha256=self.config.teacher_sha256,
            validation_accuracy=None,
        )
        return {"old": (_with_head(net, "old"), made)}


def _heads(net: nn.Module) -> Heads:
    return cast(Heads, net.get_submodule("head"))


def _split(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the old classes and of the new."""
    old, new = net(images).split([_heads(net).old.out_features, _heads(net).new.out_features], 1)
    return old, new


def _with_head(net: nn.Module, which: Literal["old", "new"]) -> nn.Module:
    """A copy of the net with one of its heads."""
    made = copy.deepcopy(net)
    head: nn.Linear = getattr(_heads(net), which)
    made.add_module("head", copy.deepcopy(head))
    cast(Classifier, made).num_classes = head.out_features
    return made


METHOD = LearningWithoutForgetting
