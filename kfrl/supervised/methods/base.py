"""The interface of methods for classifiers: a module that trains, its stages, and a loss of named terms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import TypeVar

from kfrl.config import Direction, NonNegative, Positive
from kfrl.errors import UserError, shortened
from kfrl.losses.distillation import soft_target_loss
from kfrl.nets.images.registry import make_net
from kfrl.optim.groups import ParameterGroup
from kfrl.supervised.classifiers import Card, Teacher
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch, Loader, Normalisation
from kfrl.training.method import OwnSettings

Net = TypeVar("Net", bound=nn.Module, default=nn.Module)
"""The type that `build` returns and every other hook gets; a method that needs more than the output names its type."""

Predictor = Callable[[Tensor], Tensor]
"""Images (B, C, H, W), normalised -> logits (B, K)."""


@dataclass(frozen=True)
class Task:
    """A classifier's task: data set, classes, image shape, normalisation and the student's net."""

    data: str
    """The data set's name."""
    classes: tuple[str, ...]
    """K names, in the order of the logits."""
    shape: tuple[int, int, int]
    """(C, H, W)"""
    normalisation: Normalisation
    """The normalisation of the student's images."""
    net: str
    """The student's net, by name."""

    def make_net(self, name: str | None = None) -> nn.Module:
        """A new net for this task: the student's, or another by name."""
        return make_net(name or self.net, self.shape, len(self.classes))


@dataclass(frozen=True)
class Elsewhere:
    """A predictor that is scored on images of its own, not on the run's."""

    predict: Predictor
    images: Loader
    classes: tuple[str, ...]
    """The classes of these images, in the order of the logits."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run."""

    stage: int
    in_stage: float
    """Share of the stage's updates that are done, in [0, 1]."""
    in_run: float
    """Share of the run's updates that are done, in [0, 1]."""


@dataclass(frozen=True)
class Stage:
    """A part of the run with its own parameters, its own optimiser and its own learning-rate schedule."""

    name: str
    epochs: int
    groups: tuple[ParameterGroup, ...]
    """The parameters that train; all others are frozen during the stage."""
    complete: bool = False
    """Whether the stage ends with a whole student, of which --keep chooses the epoch; the last stage always does."""


@dataclass(frozen=True)
class SoftTargets:
    """Soft targets: settings of every method that imitates a teacher's logits."""

    temperature: Positive = 4.0
    """T of softmax(logits / T)."""
    soft_weight: NonNegative = 0.9
    """Weight of T^2 KL[teacher || student]."""
    kl_direction: Direction = "forward"
    """forward: KL[teacher || student], as in the papers; reverse: KL[student || teacher]; mixed: the mean of both."""
    hard_weight: NonNegative = 0.1
    """Weight of the cross-entropy with the labels."""


class Method(OwnSettings, Generic[Net]):
    """A method for classifiers. This base trains the student on the labels alone; methods override its hooks.

    `build` returns one module, which may hold several nets. Frozen teachers are attributes of the method, not in it.
    """

    takes_teachers = "none"
    """`none`, `one`, `some` (at least one) or `any` (also none)."""
    takes_answers = False
    """Whether stored logits (--answers) may replace its teachers."""
    former_hooks = (("loss", "losses"), ("before_update", "schedule"))

    def __init__(self, config: SupervisedConfig) -> None:
        """Keep the run's settings."""
        self.config = config
        self.teachers: tuple[Teacher, ...] = ()

    @classmethod
    def default_net(cls, data_net: str, teachers: Sequence[Teacher]) -> str:
        """The student's net if --net is not given: by default the data set's usual net."""
        return data_net

    @classmethod
    def normalisation(cls, own: Normalisation, teachers: Sequence[Teacher]) -> Normalisation:
        """The normalisation of the student's images: by default that of its training images."""
        return own

    @classmethod
    def with_files(cls, config: SupervisedConfig) -> SupervisedConfig:
        """The settings, with the content of the files that they name.

        Raises:
            UserError: a file that cannot be read.
        """
        return config

    def shipped_net(self, task: Task) -> str:
        """The name, in cards, of the net that `export` returns."""
        return task.net

    @classmethod
    def check_teachers(cls, name: str, count: int) -> None:
        """Refuse a number of teachers that the method cannot use.

        Raises:
            UserError: saying how many it takes.
        """
        if cls.takes_teachers == "none" and count:
            raise UserError(
                f"Method {name} takes no teachers, got {count}. Leave --teachers out, or use --method knowledge-flow."
            )
        if cls.takes_teachers == "one" and count != 1:
            raise UserError(f"Method {name} takes exactly one teacher (--teachers NAME), got {count}.")
        if cls.takes_teachers == "some" and not count:
            raise UserError(
                f"Method {name} needs at least one teacher: --teachers NAME[,NAME...], where NAME is the data set of "
                "an earlier run, or the path of one."
            )

    @classmethod
    def check_answers(cls, name: str, given: bool) -> None:
        """Refuse stored answers if the method does not use them.

        Raises:
            UserError: saying which methods do.
        """
        if given and not cls.takes_answers:
            raise UserError(f"Method {name} does not learn from --answers alone. --method kd and mimic do.")

    @classmethod
    def check_used(cls, config: SupervisedConfig) -> None:
        """Refuse settings of the method that have no effect beside its others; called for new runs.

        Raises:
            UserError: saying what the setting needs.
        """

    def build(self, task: Task, teachers: Sequence[Teacher]) -> Net:
        """The module that trains. The teachers accept the student's images, see `adapt`."""
        self.teachers = tuple(teachers)
        return cast(Net, task.make_net())

    def prepare(self, net: Net, batches: Sequence[Tensor]) -> Iterable[str]:
        """Prepare the net of a new run on training images, once, before the first update.

        Args:
            net: The module of `build`, in evaluation mode.
            batches: Normalised images, (B, C, H, W) each.

        Returns:
            Lines for the display.
        """
        return ()

    def stages(self, net: Net) -> Sequence[Stage]:
        """The stages of the run; by default one, in which all parameters train for all epochs."""
        return (Stage("train", self.config.epochs, (ParameterGroup(tuple(net.parameters())),)),)

    def train_mode(self, net: Net, stage: int) -> None:
        """Set the modes of the nets for training; called when a stage or an epoch begins."""
        net.train()

    def schedule(self, net: Net, progress: Progress) -> None:
        """Update the schedules inside the net, before each update."""

    def losses(self, net: Net, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The named terms of the loss: scalars, already weighted; their sum is minimised."""
        return {"task": F.cross_entropy(net(batch.images), batch.labels)}

    def after_update(self, net: Net, progress: Progress) -> None:
        """Bring parameters back into their constraints, e.g. onto the simplex."""

    def export(self, net: Net) -> nn.Module:
        """The net to save, evaluate and ship: a copy that depends on no teacher and has an `arch`."""
        return copy.deepcopy(net)

    def mixes_statistics(self, net: Net) -> bool:
        """Whether batch norm statistics of the exported net include forward passes other than its own.

        They are then computed again, on training images, before the exported net is scored or saved.
        """
        return False

    def caveat(self, net: Net) -> str:
        """A sentence that must be quoted with the exported net's scores; it is written into the net's file."""
        return ""

    def others(self, net: Net, final: bool) -> Mapping[str, Predictor]:
        """Predictors to evaluate beside the exported net, by name: peers, ensembles, the student with its links.

        They are evaluated on the validation images after every epoch, and once on the test images (`final`) at the end.
        """
        return {}

    def elsewhere(self, net: Net, final: bool) -> Mapping[str, Elsewhere]:
        """Predictors to evaluate on images of their own, by name, e.g. on an old task; evaluated when `others` are."""
        return {}

    def further(self, net: Net) -> Mapping[str, tuple[nn.Module, Card]]:
        """Classifiers to save beside the student at the end of the run, as NAME.safetensors in its folder.

        The trainer writes the kept epoch, the scores and the commit into their cards.
        """
        return {}

    def metrics(self, net: Net) -> dict[str, float]:
        """Metrics to log beside the losses."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs beside those of the net, by name."""
        return {}

    def load_state(self, net: Net, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of `state`; `net` is already restored."""


AnyMethod: TypeAlias = Method[Any]
"""A method of any net."""


def distillation_terms(
    config: SoftTargets, logits: Tensor, labels: Tensor, teacher_logits: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The terms of hard CE(y, z_s) + soft T^2 KL[softmax(z_t / T) || softmax(z_s / T)] (Hinton et al. 2015).

    Args:
        config: T and both weights.
        logits: z_s, (B, K).
        labels: y, (B,).
        teacher_logits: z_t, (B, K) of each teacher; their soft targets are averaged.
    """
    soft = soft_target_loss(logits, torch.stack(list(teacher_logits)), config.temperature, config.kl_direction)
    return {
        "task": config.hard_weight * F.cross_entropy(logits, labels),
        "distillation": config.soft_weight * soft.mean(),
    }


def first_stage_epochs(method: str, epochs: int, share: float) -> int:
    """Whole epochs of the first of two stages: `share` of all, at least one, leaving at least one.

    Raises:
        UserError: a run of one epoch.
    """
    if epochs < 2:
        raise UserError(f"Method {method} has two stages, so it needs at least --epochs 2, got {epochs}.")
    return min(max(1, round(share * epochs)), epochs - 1)


def ensemble(nets: Sequence[nn.Module]) -> Predictor:
    """A predictor of the log of the nets' mean probabilities."""

    def predict(images: Tensor) -> Tensor:
        return torch.stack([net(images).log_softmax(1) for net in nets]).logsumexp(0) - math.log(len(nets))

    return predict


def check_same_classes(method: str, task: Task, teachers: Sequence[Teacher]) -> None:
    """Refuse teachers of other classes, for methods that compare logits.

    Raises:
        UserError: naming the first such teacher.
    """
    for teacher in teachers:
        if teacher.card.classes != task.classes:
            raise UserError(
                f"Method {method} compares logits, so a teacher needs the student's classes: {task.data} has "
                f"{len(task.classes)} ({shortened(task.classes, 4)}), teacher {teacher.name!r} "
                f"{len(teacher.card.classes)} ({shortened(teacher.card.classes, 4)}). "
                "--method knowledge-flow and fine-tune take teachers of any classes."
            )
