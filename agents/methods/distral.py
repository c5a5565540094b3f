"""Distral (Teh et al. 2017): several games at the same time, their policies held near one that is distilled of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from agents.batch import Batch, Context, Output, Rollout
from agents.config import TrainConfig
from agents.methods.base import Method, NetSpec, ParameterGroup, Phase
from agents.teachers.formats import Teacher
from envs.atari import ALL_ACTIONS
from kfrl.config import NonNegative
from kfrl.errors import UserError
from kfrl.losses.actor_critic import entropy
from kfrl.losses.distillation import kl_divergence
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.atari.two_column import Column, ColumnNet
from kfrl.nets.init import HEAD_GAINS, orthogonal

DISTILLED = "distilled"
"""The logits of pi_0 among the extras of an output."""


class DistralNet(nn.Module):
    """h(s), the logits of the distilled policy pi_0, and a net f_i with a value head for each game.

    pi_0 chooses between all actions that a game of the run has; for a game its logits are those of the game's own
    actions, found by name.
    """

    def __init__(self, specs: Sequence[NetSpec], convs: Sequence[Sequence[int]], hidden: int, alpha: float) -> None:
        """Build it.

        Args:
            specs: The games.
            convs: Of every net; see `AtariNet`.
            hidden: Likewise.
            alpha: Weight of h in a game's logits: `alpha h + f_i`; 0 makes it one column.
        """
        super().__init__()
        self.alpha = alpha
        self.actions = tuple(name for name in ALL_ACTIONS if any(name in spec.actions for spec in specs))
        self._indices = {spec.game: [self.actions.index(name) for name in spec.actions] for spec in specs}
        self.distilled = Column(convs, hidden)
        self.h = nn.Linear(hidden, len(self.actions))
        orthogonal(self.h, {"": HEAD_GAINS["policy"]})
        self.games = nn.ModuleDict({spec.game: AtariNet(len(spec.actions), convs, hidden) for spec in specs})

    def distilled_logits(self, game: str, obs: Tensor) -> Tensor:
        """Logits of pi_0 over the actions of `game`: (B, stack, H, W) uint8 -> (B, A)."""
        logits: Tensor = self.h(self.distilled(obs))[:, self._indices[game]]
        return logits

    def forward(self, game: str, obs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, A) of pi_i, values (B,) and, with two columns, the logits (B, A) of pi_0 that are in them."""
        logits, values = self.games[game](obs)
        if not self.alpha:
            return logits, values, None
        distilled = self.distilled_logits(game, obs)
        return logits + self.alpha * distilled, values, distilled

    @torch.no_grad()
    def export(self, game: str) -> nn.Module:
        """The policy of `game` and its value as one net that knows no other game."""
        own = self.games[game]
        assert isinstance(own, AtariNet)
        if not self.alpha:
            return copy.deepcopy(own)
        net = ColumnNet(own.policy.out_features, **self.distilled.arch)
        net.distilled.load_state_dict(self.distilled.state_dict())
        net.own.load_state_dict({k: v for k, v in own.state_dict().items() if k.split(".")[0] in own.hidden_layers})
        net.value.load_state_dict(own.value.state_dict())
        rows = self._indices[game]
        net.policy.weight.copy_(torch.cat([self.alpha * self.h.weight[rows], own.policy.weight], dim=1))
        net.policy.bias.copy_(self.alpha * self.h.bias[rows] + own.policy.bias)
        return net


@dataclass(frozen=True)
class Settings:
    """Distral. c_Ent is --entropy-coef; alpha = c_KL / (c_KL + c_Ent), beta = 1 / (c_KL + c_Ent)."""

    columns: Literal[1, 2] = 2
    """1: a game's policy is its own net. 2: it is the shared policy's logits, times alpha, plus those of its own
    net."""
    c_kl: NonNegative = 0.01
    """Weight of the divergence of a game's policy from the shared one."""


class Distral(Method[DistralNet]):
    """Rewards regularised by c_KL and c_Ent inside A3C's return, and pi_0 distilled of the games' policies.

    With c_KL = alpha / beta and c_Ent = (1 - alpha) / beta (Teh et al., section 2):

        R_i^reg = R_i + (alpha / beta) log pi_0(a|s) - (1 / beta) log pi_i(a|s)
        R_i + E_pi_i[R_i^reg - R_i] = R_i - c_KL D_KL[pi_i || pi_0] + c_Ent H(pi_i)

    The second line is used: it has the same expected gradient, and usually less noise.
    """

    takes_sources = "beside"
    algos = ("a3c",)
    Settings = Settings

    def __init__(self, config: TrainConfig) -> None:
        """Keep c_KL and c_Ent.

        Raises:
            UserError: both are 0, so that alpha is 0 / 0.
        """
        super().__init__(config)
        self.c_kl, self.c_ent = float(self.own.c_kl), config.entropy_coef
        if not self.c_kl + self.c_ent:
            raise UserError("Distral needs --c-kl or --entropy-coef (its c_Ent) above 0, got 0 and 0.")

    @property
    def alpha(self) -> float:
        """The share of the divergence in the regularisation."""
        return self.c_kl / (self.c_kl + self.c_ent)

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """All games at the same time."""
        return (Phase((spec, *spec.sources), self.config.steps),)

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> DistralNet:
        """A net for each game, and the distilled one."""
        self.game = spec.game
        alpha = self.alpha if self.own.columns == 2 else 0.0
        return DistralNet((spec, *spec.sources), self.config.convs, self.config.hidden, alpha)

    def parameter_groups(self, net: DistralNet) -> list[ParameterGroup]:
        """The distilled column, which every worker trains, and the games' nets, each of which its own workers train."""
        distilled = ParameterGroup((*net.distilled.parameters(), *net.h.parameters()))
        return [distilled, *(ParameterGroup(tuple(own.parameters()), lazy=True) for own in net.games.values())]

    def forward(self, net: DistralNet, obs: Tensor, context: Context) -> Output:
        """Logits and values of this worker's game, with the logits of pi_0 where the update will read them."""
        logits, values, distilled = net(self.task.game, obs)
        if distilled is None and torch.is_grad_enabled():
            distilled = net.distilled_logits(self.task.game, obs)
        return Output(logits, values, {} if distilled is None else {DISTILLED: distilled})

    def rewards(self, net: DistralNet, rollout: Rollout) -> Tensor:
        """R_i^reg of each step, its logarithms in expectation over the actions instead of those of the action taken."""
        regularisation = self.c_ent * entropy(rollout.logits) - self.c_kl * _divergence(rollout)
        return rollout.rewards + regularisation.detach().view_as(rollout.rewards)

    def losses(self, net: DistralNet, batch: Batch, progress: float) -> dict[str, Tensor]:
        """c_KL D_KL[pi_i || pi_0], which trains both; A3C's own entropy bonus is the regularisation's other part."""
        return {"distilled": self.c_kl * _divergence(batch).sum() / batch.num_envs}

    def export(self, net: DistralNet) -> nn.Module:
        """The policy of the run's own game: with two columns both of them, in one net."""
        return net.export(self.game)


def _divergence(batch: Batch) -> Tensor:
    """D_KL[pi_i || pi_0], (B,)."""
    return kl_divergence(batch.logits, batch.output.extras[DISTILLED])


METHOD = Distral
