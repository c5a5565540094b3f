"""Distral (Teh et al. 2017): several games at the same time, their policies held near one that is distilled of them."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
"""The logits of pi_0 among the extras of an output."""


class GamesNet(nn.Module):
    """A net that plays several games; each game has its own actions, found by name among those of all games."""

    def __init__(self, specs: Sequence[NetSpec]) -> None:
        """Find the actions of the games."""
        super().__init__()
        self.actions = tuple(name for name in ALL_ACTIONS if any(name in spec.actions for spec in specs))
        self._indices = {spec.game: [self.actions.index(name) for name in spec.actions] for spec in specs}

    @abstractmethod
    def forward(self, game: str, obs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, A) of a game, values (B,) and, with two columns, the logits (B, A) of pi_0 that are in them."""

    @abstractmethod
    def export(self, game: str) -> nn.Module:
        """The policy of `game` and its value as one net that knows no other game."""

    @abstractmethod
    def groups(self) -> list[ParameterGroup]:
        """What all games train, and lazily what each trains for itself."""


class SharedNet(GamesNet):
    """One net for all games: A3C multitask."""

    def __init__(self, specs: Sequence[NetSpec], convs: Sequence[Sequence[int]], hidden: int) -> None:
        """Build it; see `AtariNet`."""
        super().__init__(specs)
        self.net = AtariNet(len(self.actions), convs, hidden)

    def forward(self, game: str, obs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of the logits those of the game's actions."""
        logits, values = self.net(obs)
        return logits[:, self._indices[game]], values, None

    @torch.no_grad()
    def export(self, game: str) -> nn.Module:
        """The net without the actions that the game has not."""
        rows = self._indices[game]
        fields = {name: value for name, value in self.net.arch.items() if name != "family"}
        net = AtariNet(len(rows), **fields)
        held = self.net.state_dict()
        kept = {name: held[name][rows] for name in ("policy.weight", "policy.bias")}
        net.load_state_dict(held | kept)
        return net

    def groups(self) -> list[ParameterGroup]:
        """Everything."""
        return [ParameterGroup(tuple(self.parameters()))]


class DistralNet(GamesNet):
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

    def groups(self) -> list[ParameterGroup]:
        """The distilled column, which every game trains, and the games' nets, each of which its own game trains."""
        distilled = ParameterGroup((*self.distilled.parameters(), *self.h.parameters()))
        return [distilled, *(ParameterGroup(tuple(own.parameters()), lazy=True) for own in self.games.values())]


Variant = Literal["kl-ent-2col", "kl-ent-1col", "kl-2col", "kl-1col", "a3c-2col", "a3c-multitask"]


@dataclass(frozen=True)
class Settings:
    """Distral. c_Ent is --entropy-coef; alpha = c_KL / (c_KL + c_Ent), beta = 1 / (c_KL + c_Ent)."""

    variant: Variant | None = None
    """A row of the paper's comparison by name, in place of --columns: kl-ent-* have both terms, kl-* have c_KL 1 / beta
    and no entropy, a3c-* no divergence; 1col and 2col are the columns, a3c-multitask is one net for all games. The
    Knowledge Flow paper's Table 7 compares with kl-ent-1col."""
    columns: Literal[1, 2] = 2
    """1: a game's policy is its own net. 2: it is the shared policy's logits, times alpha, plus those of its own
    net."""
    c_kl: NonNegative = 0.01
    """Weight of the divergence of a game's policy from the shared one."""


class Distral(Method[GamesNet]):
    """Rewards regularised by c_KL and c_Ent inside A3C's return, and pi_0 distilled of the games' policies.

    With c_KL = alpha / beta and c_Ent = (1 - alpha) / beta (Teh et al., section 2):

        R_i^reg = R_i + (alpha / beta) log pi_0(a|s) - (1 / beta) log pi_i(a|s)
        R_i + E_pi_i[R_i^reg - R_i] = R_i - c_KL D_KL[pi_i || pi_0] + c_Ent H(pi_i)

    The second line is used: it has the same expected gradient, and usually less noise.
    """

    takes_sources = "beside"
    algos = ("a3c", "a2c", "ppo")
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
        variant = self.own.variant or f"kl-ent-{self.own.columns}col"
        self.one_net, self.columns = variant == "a3c-multitask", 2 if variant.endswith("2col") else 1
        self.plain = variant.startswith("a3c-")
        if self.plain:
            self.c_kl = 0.0
        elif not variant.startswith("kl-ent-"):
            self.c_kl, self.c_ent = self.c_kl + self.c_ent, 0.0

    @property
    def alpha(self) -> float:
        """The share of the divergence in the regularisation."""
        return self.c_kl / (self.c_kl + self.c_ent)

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """All games at the same time."""
        return (Phase((spec, *spec.sources), self.config.steps),)

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> GamesNet:
        """A net for each game, and the distilled one; or one net for all."""
        self.game = spec.game
        specs, convs, hidden = (spec, *spec.sources), self.config.convs, self.config.hidden
        if self.one_net:
            return self.started(SharedNet(specs, convs, hidden))
        weight = 1.0 if self.plain else self.alpha
        return self.started(DistralNet(specs, convs, hidden, weight if self.columns == 2 else 0.0))

    def parameter_groups(self, net: GamesNet) -> list[ParameterGroup]:
        """What every worker trains, and the games' nets, each of which its own workers train."""
        return net.groups()

    def forward(self, net: GamesNet, obs: Tensor, context: Context) -> Output:
        """Logits and values of this worker's game, with the logits of pi_0 where the update will read them."""
        logits, values, distilled = net(self.task.game, obs)
        if distilled is None and isinstance(net, DistralNet) and torch.is_grad_enabled():
            distilled = net.distilled_logits(self.task.game, obs)
        return Output(logits, values, {} if distilled is None else {DISTILLED: distilled})

    @torch.no_grad()
    def rewards(self, net: GamesNet, rollout: Rollout) -> Tensor:
        """R_i^reg of each step, its logarithms in expectation over the actions instead of those of the action taken."""
        if self.plain:
            return rollout.rewards
        distilled = rollout.output.extras.get(DISTILLED)
        if distilled is None:
            assert isinstance(net, DistralNet)
            distilled = net.distilled_logits(self.task.game, rollout.obs)
        regularisation = self.c_ent * entropy(rollout.logits) - self.c_kl * kl_divergence(rollout.logits, distilled)
        return rollout.rewards + regularisation.view_as(rollout.rewards)

    def rl_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """A3C's own; its entropy bonus is the regularisation's other part, and c_Ent may be 0."""
        return {name: term for name, term in terms.items() if name != "entropy" or self.c_ent}

    def losses(self, net: GamesNet, batch: Batch, progress: float) -> dict[str, Tensor]:
        """c_KL D_KL[pi_i || pi_0], which trains both."""
        if not self.c_kl:
            return {}
        divergence = kl_divergence(batch.logits, batch.output.extras[DISTILLED])
        return {"distilled": self.c_kl * divergence.sum() / batch.num_envs}

    def export(self, net: GamesNet) -> nn.Module:
        """The policy of the run's own game: with two columns both of them, in one net."""
        return net.export(self.game)


METHOD = Distral
