"""Progressive nets (Rusu et al. 2016) as a method: a new column with laterals from frozen columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from agents.batch import Context, Output
from agents.methods.base import Method, NetSpec
from agents.teachers.formats import Teacher
from kfrl.config import Positive
from kfrl.nets import arch_of, build_net
from kfrl.nets.atari.progressive import ProgressiveNet


@dataclass(frozen=True)
class Settings:
    """Progressive nets."""

    initial_scalar: Positive = 0.1
    """Initial alpha, the learned scalar on a frozen column's activations (the paper samples 1, 0.1, 0.01)."""
    random_columns: bool = False
    """Use frozen columns with the teachers' shapes and random weights (the paper's baseline 4)."""


class Progressive(Method[ProgressiveNet]):
    """Every teacher is a frozen column; the student is the trained column, with laterals from all of them.

    The exported net contains the frozen columns, because it needs them to play.
    """

    takes_teachers = "some"
    takes_init = False
    takes_recurrent_teachers = True
    Settings = Settings

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> ProgressiveNet:
        """The student's column and the teachers' nets, which are not copied.

        With `random_columns`, new nets with their shapes; they are not trained, so all processes share their weights.
        """
        columns = {teacher.name: teacher.net for teacher in teachers}
        if self.own.random_columns:
            columns = {teacher.name: _fresh(teacher) for teacher in teachers}
        config, scalar = self.config, self.own.initial_scalar
        return ProgressiveNet(len(spec.actions), columns, config.convs, config.hidden, initial_scalar=scalar)

    def features(self, net: ProgressiveNet, obs: Tensor) -> Context:
        """The activations of the frozen columns."""
        return net.features(obs)

    def forward(self, net: ProgressiveNet, obs: Tensor, context: Context) -> Output:
        """Logits and values of the trained column."""
        return Output(*net(obs, context))

    def metrics(self, net: ProgressiveNet) -> dict[str, float]:
        """Alpha of each frozen column, by the layer that reads its lateral."""
        return {f"progressive/alpha/{column}/{layer}": alpha for (column, layer), alpha in net.scalars().items()}


def _fresh(teacher: Teacher) -> nn.Module:
    """A net with a teacher's shape and new weights."""
    return build_net(arch_of(teacher.net), len(teacher.card.actions)).eval().requires_grad_(False)


METHOD = Progressive
