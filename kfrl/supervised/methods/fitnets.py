"""FitNets (Romero et al., ICLR 2015): a hint from the middle of the teacher, then soft targets of falling weight."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import Direction, Fraction, NonNegative, Positive
from kfrl.errors import UserError, unknown
from kfrl.flow import hidden_layers
from kfrl.losses.distillation import hint_loss, soft_target_loss
from kfrl.nets.hooks import activation_of, layer_shapes, maxout_pieces, parameters_before, with_features
from kfrl.nets.images.maxout import Maxout
from kfrl.optim.groups import ParameterGroup
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import (
    Method,
    Progress,
    Stage,
    Task,
    check_same_classes,
    first_stage_epochs,
)
from kfrl.supervised.teachers import teacher_logits

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """FitNets: hints from the middle of the teacher, then soft targets."""

    hint_share: Fraction = 0.25
    """Share of the epochs that the hint stage takes, at least one of them."""
    hint_layer: str | None = None
    """The teacher's layer that gives the hint. Default: its middle one."""
    guided_layer: str | None = None
    """The student's layer that is guided. Default: its middle one."""
    hint_weight: Positive = 100.0
    """Weight of the hint loss, a mean over a map."""
    soft_start: NonNegative = 4.0
    """lambda, the weight of the soft targets, when the second stage begins; it falls linearly."""
    soft_end: NonNegative = 1.0
    """lambda when the second stage ends."""
    temperature: Positive = 4.0
    """T of the soft targets, softmax(logits / T)."""
    kl_direction: Direction = "forward"
    """forward: KL[teacher || student], as in the paper; reverse: KL[student || teacher]; mixed: the mean of both."""


class FitNet(nn.Module):
    """A student, and the regressor of its guided layer."""

    def __init__(self, student: nn.Module, regressor: nn.Module) -> None:
        """Hold both modules."""
        super().__init__()
        self.student, self.regressor = student, regressor


class FitNets(Method[FitNet]):
    """Stage 1: the student up to its guided layer learns the hint; stage 2: all of it, labels and soft targets."""

    takes_teachers = "one"
    Settings = Settings
    former_settings = ("soft_weight", "hard_weight")

    def build(self, task: Task, teachers: Sequence[Teacher]) -> FitNet:
        """The student and a regressor from its guided layer to the teacher's hint.

        Raises:
            UserError: other classes, a layer that does not exist, or layers that the paper's regressor cannot connect.
        """
        check_same_classes("fitnets", task, teachers)
        self.teachers = (teacher,) = tuple(teachers)
        student = task.make_net().to(self.config.device)
        config: Settings = self.own
        self.guided = _layer(student, config.guided_layer, "student's layer")
        self.hint = _layer(teacher.net, config.hint_layer, "teacher's layer")
        self.example = torch.zeros(2, *task.shape, device=self.config.device)
        guided = layer_shapes(student, [self.guided], self.example)[self.guided]
        hint = layer_shapes(teacher.net, [self.hint], self.example)[self.hint]
        pieces = maxout_pieces(teacher.net).get(self.hint)
        return FitNet(student, _regressor(f"{self.guided} -> {self.hint}", guided, hint, pieces))

    def stages(self, net: FitNet) -> Sequence[Stage]:
        """The hint, then the soft targets."""
        epochs = first_stage_epochs("fitnets", self.config.epochs, self.own.hint_share)
        below = parameters_before(net.student, [self.guided], self.example)
        return (
            Stage("hint", epochs, (ParameterGroup((*below, *net.regressor.parameters())),)),
            Stage("soft targets", self.config.epochs - epochs, (ParameterGroup(tuple(net.student.parameters())),)),
        )

    def losses(self, net: FitNet, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq. 3, then eq. 2 of the paper."""
        return self._hint(net, batch) if progress.stage == 0 else self._soft(net.student, batch, progress.in_stage)

    def _hint(self, net: FitNet, batch: Batch) -> dict[str, Tensor]:
        teacher = self.teachers[0].net
        with torch.no_grad():
            _, taught = with_features(teacher, [self.hint], batch.images)
        _, own = with_features(net.student, [self.guided], batch.images)
        guided = net.regressor(activation_of(net.student, self.guided, own[self.guided]))
        # Both sides have the same non-linearity, as in the paper.
        guided, hint = (activation_of(teacher, self.hint, z) for z in (guided, taught[self.hint]))
        return {"hint": self.own.hint_weight * hint_loss(guided, hint).mean()}

    def _soft(self, student: nn.Module, batch: Batch, in_stage: float) -> dict[str, Tensor]:
        config, temperature = self.own, self.own.temperature
        logits = student(batch.images)
        soft = soft_target_loss(logits, teacher_logits(self.teachers[0], batch), temperature, config.kl_direction)
        weight = config.soft_start + in_stage * (config.soft_end - config.soft_start)
        return {
            "task": F.cross_entropy(logits, batch.labels),
            # The paper has no T^2.
            "distillation": weight / temperature**2 * soft.mean(),
        }

    def export(self, net: FitNet) -> nn.Module:
        """The student without the regressor."""
        return copy.deepcopy(net.student)


def _layer(net: nn.Module, name: str | None, kind: str) -> str:
    layers = hidden_layers(net)
    if not layers:
        raise UserError(f"fitnets needs a net with hidden layers, and a {type(net).__name__} names none.")
    if name is None:
        return layers[(len(layers) - 1) // 2]
    if name not in layers:
        raise unknown(kind, name, layers)
    return name


def _regressor(link: str, guided: Shape, hint: Shape, pieces: int | None) -> nn.Module:
    """The paper's regressor: a convolution without padding whose output is as large as the hint; a matrix for vectors.

    For a hint from a maxout layer it is itself a maxout layer of as many pieces.

    Raises:
        UserError: a map and a vector, or a guided map smaller than the hint.
    """
    outputs = hint[0] * (pieces or 1)
    if len(guided) == len(hint) == 1:
        return _maxout(nn.Linear(guided[0], outputs), pieces)
    kernel = [own - theirs + 1 for own, theirs in zip(guided[1:], hint[1:], strict=False)]
    if len(guided) != 3 or len(hint) != 3 or min(kernel) < 1:
        raise UserError(
            "The regressor of fitnets is a convolution without padding, or a matrix between vectors: it cannot turn "
            f"{guided} into {hint} ({link}). Name other layers with --guided-layer and --hint-layer."
        )
    return _maxout(nn.Conv2d(guided[0], outputs, (kernel[0], kernel[1])), pieces)


def _maxout(filters: nn.Conv2d | nn.Linear, pieces: int | None) -> nn.Module:
    return filters if pieces is None else Maxout(filters, pieces)


METHOD = FitNets
