"""Your own method for games in your own file: kickstarting (Schmitt et al. 2018).

kfrl train --method examples/games_method.py --game Pong --teachers zoo:pong --strength 0.5
kfrl train --method examples/games_method.py --help
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from agents.actions import in_order
from agents.batch import Batch, Context
from agents.methods.base import Method, NetSpec
from agents.teachers.formats import Teacher
from kfrl.config import Fraction, NonNegative
from kfrl.nets.atari.net import AtariNet


class Kickstarting(Method):
    """A plain student with a cross-entropy loss to the teacher's policy, whose weight decreases during the run."""

    takes_teachers = "one"

    @dataclass(frozen=True)
    class Settings:
        """Settings of the method; they are flags, and are written into the run's config.yaml."""

        strength: NonNegative = 1.0
        """lambda, the initial weight of the cross-entropy with the teacher's policy."""
        ends_at: Fraction = 0.5
        """Share of the run at which the weight reaches 0."""

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> AtariNet:
        """Build the net to train."""
        self.teacher, self.actions = teachers[0], spec.actions
        return super().build(spec, teachers)

    def features(self, net: nn.Module, obs: Tensor) -> Context:
        """The teacher's logits (B, A), computed once for each observation."""
        logits, _ = self.teacher.net(obs)
        return (in_order(logits, self.teacher.card.actions, self.actions),)

    def losses(self, net: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The term to add to the actor-critic loss."""
        weight = self.own.strength * max(0.0, 1.0 - progress / max(self.own.ends_at, 1e-9))
        (teacher,) = batch.context
        cross_entropy = -(teacher.softmax(1) * batch.logits.log_softmax(1)).sum()
        return {"kickstarting": weight * cross_entropy / batch.num_envs}


METHOD = Kickstarting
