"""Distral (Teh et al. 2017): several games at the same time, with policies regularised towards a distilled policy."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.batch import Batch, Context, Output, Rollout
from agents.config import TrainConfig
from agents.methods.base import Method, NetSpec, Phase
from agents.teachers.formats import Teacher
from envs.atari import ALL_ACTIONS
from kfrl.config import NonNegative
from kfrl.errors import UserError
from kfrl.losses.actor_critic import entropy
from kfrl.losses.distillation import kl_divergence
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.atari.two_column import BodyColumn, ColumnNet
from kfrl.nets.init import HEAD_GAINS, orthogonal
from kfrl.optim.groups import ParameterGroup

DISTILLED = "distilled"
"""Key of the logits of pi_0 in the extras of an output."""


class GamesNet(nn.Module):
    """A net for several games; each game has its own subset of all games' actions."""

    def __init__(self, specs: Sequence[NetSpec]) -> None:
        """Compute the union of the games' actions, and the indices of each game's actions in it."""
        super().__init__()
        self.actions = tuple(name for name in ALL_ACTIONS if any(name in spec.actions for spec in specs))
        self._indices = {spec.game: [self.actions.index(name) for name in spec.actions] for spec in specs}

    @abstractmethod
    def forward(self, game: str, obs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, A) of a game, values (B,) and, with two columns, the logits (B, A) of pi_0 that they contain."""

    @abstractmethod
    def export(self, game: str) -> nn.Module:
        """A net with the policy and the value of `game` only."""

    @abstractmethod
    def groups(self) -> list[ParameterGroup]:
        """The parameters that all games train, and a lazy group for each game's own."""


class SharedNet(GamesNet):
    """One net for all games: A3C multitask."""

    def __init__(self, specs: Sequence[NetSpec], convs: Sequence[Sequence[int]], hidden: int) -> None:
        """Build it; see `AtariNet`."""
        super().__init__(specs)
        self.net = AtariNet(len(self.actions), convs, hidden)

    def forward(self, game: str, obs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of the game's actions, values (B,), None."""
        logits, values = self.net(obs)
        return logits[:, self._indices[game]], values, None

    @torch.no_grad()
    def export(self, game: str) -> nn.Module:
        """The net with only the game's actions."""
        rows = self._indices[game]
        fields = {name: value for name, value in self.net.arch.items() if name != "family"}
        net = AtariNet(len(rows), **fields)
        held = self.net.state_dict()
        kept = {name: held[name][rows] for name in ("policy.weight", "policy.bias")}
        net.load_state_dict(held | kept)
        return net

    def groups(self) -> list[ParameterGroup]:
        """All parameters."""
        return [ParameterGroup(tuple(self.parameters()))]


class DistralNet(GamesNet):
    """The distilled policy pi_0 with logits h(s), and for each game a net f_i with a value head.

    pi_0 has the union of the games' actions; for a game, its logits are restricted to the game's actions.
    """

    def __init__(self, specs: Sequence[NetSpec], convs: Sequence[Sequence[int]], hidden: int, alpha: float) -> None:
        """Build it.

        Args:
            specs: The games.
            convs: Convolutions of every net; see `AtariNet`.
            hidden: Units of the fully connected layer of every net.
            alpha: Weight of h in a game's logits, `alpha h + f_i`; 0 for one column.
        """
        super().__init__(specs)
        self.alpha = alpha
        self.distilled = BodyColumn(convs, hidden)
        self.h = nn.Linear(hidden, len(self.actions))
        orthogonal(self.h, {"": HEAD_GAINS["policy"]})
        self.games = nn.ModuleDict({spec.game: AtariNet(len(spec.actions), convs, hidden) for spec in specs})

    def distilled_logits(self, game: str, obs: Tensor) -> Tensor:
        """Logits of pi_0 over the actions of `game`: (B, stack, H, W) uint8 -> (B, A)."""
        logits: Tensor = self.h(self.distilled(obs))[:, self._indices[game]]
        return logits

    def forward(self, game: str, obs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, A) of pi_i, values (B,) and, with two columns, the logits (B, A) of pi_0 that they contain."""
        logits, values = self.games[game](obs)
        if not self.alpha:
            return logits, values, None
        distilled = self.distilled_logits(game, obs)
        return logits + self.alpha * distilled, values, distilled

    @torch.no_grad()
    def export(self, game: str) -> nn.Module:
        """A net with the policy and the value of `game` only."""
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

    def groups(self) -> list[ParameterGroup]:
        """The distilled column, which all games train, and a lazy group for each game's net."""
        distilled = ParameterGroup((*self.distilled.parameters(), *self.h.parameters()))
        return [distilled, *(ParameterGroup(tuple(own.parameters()), lazy=True) for own in self.games.values())]


Variant = Literal["kl-ent-2col", "kl-ent-1col", "kl-2col", "kl-1col", "a3c-2col", "a3c-multitask"]


@dataclass(frozen=True)
class Settings:
    """Distral. c_Ent is --entropy-coef; alpha = c_KL / (c_KL + c_Ent), beta = 1 / (c_KL + c_Ent)."""

    variant: Variant = "kl-ent-2col"
    """Of the paper's comparison. kl-ent-*: both terms. kl-*: c_KL = 1 / beta, no entropy. a3c-*: no divergence. *-1col:
    a game's logits are those of its own net. *-2col: alpha times the shared policy's logits plus those of its own net.
    a3c-multitask: one net for all games. The Knowledge Flow paper's Table 7 compares with kl-ent-1col."""
    c_kl: NonNegative = 0.01
    """Weight of the divergence of a game's policy from the shared one."""

    @staticmethod
    def renew(values: dict[str, Any]) -> dict[str, Any]:
        """Convert `columns`, a setting of earlier versions, to a variant."""
        columns, variant = values.get("columns"), values.get("variant")
        others = {name: value for name, value in values.items() if name not in ("columns", "variant")}
        if variant is None and columns is not None:
            variant = f"kl-ent-{columns}col"
        return others if variant is None else {**others, "variant": variant}


class Distral(Method[GamesNet]):
    """A3C with rewards regularised by c_KL and c_Ent, and pi_0 distilled from the games' policies.

    With c_KL = alpha / beta and c_Ent = (1 - alpha) / beta (Teh et al., section 2):

        R_i^reg = R_i + (alpha / beta) log pi_0(a|s) - (1 / beta) log pi_i(a|s)
        R_i + E_pi_i[R_i^reg - R_i] = R_i - c_KL D_KL[pi_i || pi_0] + c_Ent H(pi_i)

    The second form is used: it has the same expected gradient, and usually less noise.
    """

    takes_sources = "beside"
    algos = ("a3c", "a2c", "ppo")
    algos_why = "Its games take turns: an update of one game has no curvature of the other games' layers for K-FAC."
    games_in_turn = True
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
        variant = self.own.variant
        self.one_net, self.columns = variant == "a3c-multitask", 2 if variant.endswith("2col") else 1
        self.plain = variant.startswith("a3c-")
        if self.plain:
            self.c_kl = 0.0
        elif not variant.startswith("kl-ent-"):
            self.c_kl, self.c_ent = self.c_kl + self.c_ent, 0.0

    def check_used(self) -> None:
        """See `Method.check_used`."""
        if self.plain:
            self.refuse_unused(("c_kl",), f"--variant {self.own.variant} has no divergence. Leave one of them out.")

    @property
    def alpha(self) -> float:
        """alpha: the share of the divergence in the regularisation."""
        return self.c_kl / (self.c_kl + self.c_ent)

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """All games at the same time."""
        return (Phase((spec, *spec.sources), self.config.steps),)

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> GamesNet:
        """The distilled policy and a net for each game; or one net for all games."""
        self.game = spec.game
        specs, convs, hidden = (spec, *spec.sources), self.config.convs, self.config.hidden
        if self.one_net:
            return self.started(SharedNet(specs, convs, hidden))
        weight = 1.0 if self.plain else self.alpha
        return self.started(DistralNet(specs, convs, hidden, weight if self.columns == 2 else 0.0))

    def parameter_groups(self, net: GamesNet) -> list[ParameterGroup]:
        """The groups of the net."""
        return net.groups()

    def forward(self, net: GamesNet, obs: Tensor, context: Context) -> Output:
        """Logits and values of this worker's game, with the logits of pi_0 if the update needs them."""
        logits, values, distilled = net(self.task.game, obs)
        if distilled is None and isinstance(net, DistralNet) and torch.is_grad_enabled():
            distilled = net.distilled_logits(self.task.game, obs)
        return Output(logits, values, {} if distilled is None else {DISTILLED: distilled})

    @torch.no_grad()
    def rewards(self, net: GamesNet, rollout: Rollout) -> Tensor:
        """The regularised reward of each step, in expectation over the actions instead of for the action taken."""
        if self.plain:
            return rollout.rewards
        distilled = rollout.output.extras.get(DISTILLED)
        if distilled is None:
            assert isinstance(net, DistralNet)
            distilled = net.distilled_logits(self.task.game, rollout.obs)
        regularisation = self.c_ent * entropy(rollout.logits) - self.c_kl * kl_divergence(rollout.logits, distilled)
        return rollout.rewards + regularisation.view_as(rollout.rewards)

    def rl_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """A3C's terms; its entropy bonus is a part of the regularisation, and left out if c_Ent is 0."""
        return {name: term for name, term in terms.items() if name != "entropy" or self.c_ent}

    def losses(self, net: GamesNet, batch: Batch, progress: float) -> dict[str, Tensor]:
        """c_KL D_KL[pi_i || pi_0], which trains both policies."""
        if not self.c_kl:
            return {}
        divergence = kl_divergence(batch.logits, batch.output.extras[DISTILLED])
        return {"distilled": self.c_kl * divergence.sum() / batch.num_envs}

    def export(self, net: GamesNet) -> nn.Module:
        """The policy of the run's own game; with two columns, both in one net."""
        return net.export(self.game)


METHOD = Distral
