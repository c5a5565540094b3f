"""Base class of methods for games: a network and loss terms, used by every engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeAlias, cast

from torch import Tensor, nn
from typing_extensions import TypeVar

from agents.batch import Batch, Context, Output, Rollout
from agents.config import TrainConfig
from agents.teachers.formats import Teacher
from envs.atari import AtariEnvs
from kfrl.errors import UserError
from kfrl.nets.atari.lstm import LSTMNet
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.init import start
from kfrl.optim.groups import ParameterGroup
from kfrl.training.method import OwnSettings

N = TypeVar("N", bound=nn.Module)
Net = TypeVar("Net", bound=nn.Module, default=AtariNet)
"""The class of the net that a method builds, which every other hook gets; default `AtariNet`."""


@dataclass(frozen=True)
class NetSpec:
    """A game with its actions, for which a net is built."""

    game: str
    """The ROM's name."""
    actions: tuple[str, ...]
    """The names of the A actions, in the order of the logits."""
    sources: tuple[NetSpec, ...] = ()
    """The run's source games."""


@dataclass(frozen=True)
class Phase:
    """A phase of a run: games that are learned at the same time, in the same way."""

    games: tuple[NetSpec, ...]
    """The games, divided evenly over the workers; the run's own game is first, if it is among them."""
    steps: int
    """Agent steps in the run's own game; in a `source` phase, in all its games together."""
    title: str = ""
    """Its name, if a run has several phases of the same games."""
    lr: tuple[float, float] = (1.0, 0.0)
    """The learning rate at the start and at the end, as shares of the run's; linear in between."""
    warm_up: float = 0.0
    """Share of the phase in which the rate rises from 0: Adam's first steps at full rate would damage a trained net."""
    t_max: int | None = None
    """Steps of a rollout; default: the run's."""
    imitates: bool = False
    """Whether rewards are ignored: on every engine, one update by Adam per rollout, from the method's losses only."""
    guided: bool = False
    """Whether another net than the one that learns may act, e.g. a teacher: such games are no training games."""
    stored: bool = False
    """Whether no game is played: updates draw from stored answers, and each step counts as one sample of a rollout."""
    source: bool = False
    """Whether its steps count as source steps, even those in the run's own game."""

    def lr_share(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1], as a share of the run's."""
        start, end = self.lr
        share = start + (end - start) * progress
        return share * min(1.0, progress / self.warm_up) if self.warm_up else share


class Play(Protocol):
    """Plays the run's own game and returns observations. The steps count for the run's budget."""

    def __call__(self, count: int, policy: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(count, stack, H, W) uint8, every fourth step of several games.

        Args:
            count: Number of observations, rounded up to a multiple of the environments.
            policy: (B, stack, H, W) -> logits (B, A); without one, random play.
        """


@dataclass(frozen=True)
class Review:
    """The result of a review of the net during training."""

    lines: tuple[str, ...] = ()
    """Sentences for the display."""
    history: tuple[dict[str, Any], ...] = ()
    """Rows for the run's history.csv, with equal columns."""
    fresh: tuple[nn.Parameter, ...] = ()
    """Parameters that were re-initialised; their optimiser statistics are reset to 0."""


class Method(OwnSettings, Generic[Net]):
    """Base class of the methods for games; unchanged it is A3C from scratch.

    Each process has one instance. `progress` is the share of the phase's steps that is done, in [0, 1]; most methods
    have one phase.
    """

    takes_teachers = "none"
    """Teachers that it needs: `none`, `one` or `some`."""
    takes_sources = "none"
    """Source games: `none`; `beside` or `before`: --source-games, at the same time or in earlier phases;
    `teachers-beside` or `teachers-before`: the games of its teachers, likewise."""
    takes_answers = "none"
    """Use of --answers: `none`; `instead`: they replace the teachers; `beside`: the teachers are still needed."""
    algos: tuple[str, ...] = ("a3c", "a2c", "ppo", "acktr")
    """The values of `--algo` that it supports."""
    algos_why: str = ""
    """Why it supports no others, a sentence."""
    takes_init = True
    """Whether it supports other initial weights (--init)."""
    unused: Mapping[str, str] = MappingProxyType({})
    """Common settings without an effect on it, e.g. `gamma` or `ppo.epochs` -> a sentence on the reason and on what to
    do."""
    games_in_turn = False
    """Whether one learner may learn several games, with a rollout and an update of each in turn; `task` is the game."""
    takes_recurrent_teachers = False
    """Whether it reads no layer of a teacher that depends on the teacher's state."""
    leans_on_teachers = False
    """Whether a trained net may still need its teachers; `independent` tells whether it does."""
    trains_value = True
    """Whether the value head of the exported net is trained."""
    former_hooks = (("observe", "features"), ("before_rollout", "after_rollout"))
    phase: int = 0
    """The index of the present phase."""
    features_of: Hashable = None
    """A key for the state on which `features` depends; when it changes, cached features are computed again."""
    task: NetSpec
    """The game that this process plays; set by `begin`."""

    def __init__(self, config: TrainConfig) -> None:
        """Keep the run's settings."""
        self.config = config

    @property
    def memory_bytes(self) -> float:
        """Bytes of the full replay buffers of all learners."""
        return 0.0

    @classmethod
    def check_teachers(cls, name: str, count: int) -> None:
        """Refuse a number of teachers that the method cannot use.

        Raises:
            UserError: the message says how many it accepts.
        """
        if cls.takes_teachers == "none" and count:
            learns = cls.takes_sources in ("beside", "before")
            instead = "It learns source games itself: --source-games NAME[,NAME]" if learns else "Leave them out"
            raise UserError(
                f"Method {name} takes no teachers, got {count}. {instead}, or use --method knowledge-flow or fine-tune."
            )
        if cls.takes_teachers == "one" and count != 1:
            raise UserError(f"Method {name} takes exactly one teacher (--teachers NAME), got {count}.")
        if cls.takes_teachers == "some" and not count:
            raise UserError(
                f"Method {name} needs at least one teacher: --teachers NAME[,NAME...]; `kfrl teachers list` lists them."
            )

    @classmethod
    def check_sources(cls, name: str, count: int, steps: int | None) -> None:
        """Refuse source games that the method cannot use, or their absence.

        Raises:
            UserError: the message says what it accepts.
        """
        given = cls.takes_sources in ("beside", "before")
        if given and not count:
            raise UserError(f"Method {name} needs source games: --source-games NAME[,NAME]; `kfrl games` lists them.")
        if not given and count:
            taught = cls.takes_sources.startswith("teachers")
            why = (
                ": its source games are those of its teachers"
                if taught
                else ". --method pathnet learns them before the game, --method distral beside it"
            )
            raise UserError(f"Method {name} takes no --source-games, got {count}{why}.")
        if not cls.takes_sources.endswith("before") and steps is not None:
            raise UserError(
                f"Method {name} learns no game before its own, so --source-steps {steps:,} has no effect. Leave it out."
            )

    @classmethod
    def check_answers(cls, name: str, files: int) -> None:
        """Refuse stored answers that the method does not use.

        Raises:
            UserError: the message names the methods that use them.
        """
        if cls.takes_answers == "none" and files:
            raise UserError(
                f"Method {name} does not use --answers. policy-distillation and actor-mimic learn from them, and "
                "knowledge-flow folds on them."
            )

    @classmethod
    def check_init(cls, name: str, init: str) -> None:
        """Refuse an initialisation that the method does not use.

        Raises:
            UserError: the method has its own initialisation.
        """
        if init != "orthogonal" and not cls.takes_init:
            raise UserError(
                f"Method {name} has its own initialisation (see its page), got --init {init}. Leave it out."
            )

    @classmethod
    def check_unused(cls, name: str, config: TrainConfig) -> None:
        """Refuse other values than the defaults for settings that the method does not use.

        Raises:
            UserError: the message says why the setting has no effect.
        """
        usual = TrainConfig(algo=config.algo)
        for setting, why in cls.unused.items():
            read = attrgetter(setting)
            given = read(config)
            if given not in (read(usual), getattr(usual.shape, setting, None)):
                raise not_used(name, setting, given, why)

    def check_used(self) -> None:
        """Refuse settings of the method that have no effect beside its others; called for new runs, after `build`.

        Raises:
            UserError: the message says what the setting needs.
        """

    @classmethod
    def check_algo(cls, name: str, algo: str) -> None:
        """Refuse an algorithm that the method does not support.

        Raises:
            UserError: the message names those that it supports.
        """
        if algo not in cls.algos:
            why = f" {cls.algos_why}" if cls.algos_why else ""
            raise UserError(
                f"Method {name} does not run under --algo {algo}, only under {' or '.join(cls.algos)}.{why}"
            )

    @classmethod
    def carries_state(cls) -> bool:
        """Whether it can train a recurrent net: it has not replaced `forward` alone, without `forward_with_state`."""
        return cls.forward is Method.forward or cls.forward_with_state is not Method.forward_with_state

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> Net:
        """Build the net to train: obs (B, stack, H, W) uint8 -> logits (B, A), values (B,)."""
        return cast(Net, self.student(spec))

    def student(self, spec: NetSpec) -> AtariNet:
        """Build a plain net for a game, according to the settings."""
        kind = LSTMNet if self.config.net == "lstm" else AtariNet
        return self.started(kind(len(spec.actions), self.config.convs, self.config.hidden))

    def started(self, net: N) -> N:
        """Initialise a new net according to the settings; returns the net."""
        start(net, self.config.init)
        return net

    def prepare(self, net: Net, play: Play) -> Iterable[str]:
        """Fit the net of a new run to its game, after `build`. Called once, in the launcher.

        Returns:
            Sentences for the display; the iterable does the work.
        """
        return ()

    def notes(self, net: Net) -> Sequence[str]:
        """Sentences for the display at the start of a run, about the effect of its settings."""
        return ()

    def caveat(self, net: Net) -> str:
        """A sentence that must be quoted with the trained net's scores; it is written into the net's file."""
        return ""

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """The phases of the run in order; the last phase contains the run's own game."""
        return (Phase((spec,), self.config.steps),)

    def fitted_phases(self, net: Net, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Adapt `phases` to a net after `prepare` or `end_phase`; a phase without steps is skipped.

        Their order, their number and the sum of their steps must not change.
        """
        return phases

    def begin(self, net: Net, phase: int, task: NetSpec, rank: int) -> None:
        """Start a phase. Called in every process, for every copy of the net, before the hooks below.

        Args:
            net: The net, with its `state_dict` at the start of the phase or from the checkpoint.
            phase: Index into `phases`.
            task: The game of this process.
            rank: Index of the learner.
        """
        self.phase, self.task = phase, task

    def recall(self, scores: Sequence[float]) -> None:
        """Take up the raw scores of the phase's latest games in `task`, the oldest first.

        Called after `begin` in every process, when a run is resumed.
        """

    def end_phase(self, net: Net, play: Play) -> Iterable[str]:
        """Prepare the net for the next phase. Called once, in the launcher. The optimiser state is reset separately.

        The net must keep all information for later phases in tensors of its `state_dict`.

        Returns:
            Sentences for the display; the iterable does the work.
        """
        return ()

    def parameter_groups(self, net: Net) -> list[ParameterGroup]:
        """The parameters to train in this phase; by default all that are not frozen.

        All processes share one copy of the other tensors in the net's `state_dict`.
        """
        return [ParameterGroup(tuple(p for p in net.parameters() if p.requires_grad))]

    def schedule(self, net: Net, progress: float) -> None:
        """Update the schedules in the net, and nothing else: any process may call it at any time."""

    def features(self, net: Net, obs: Tensor) -> Context:
        """Compute features that do not depend on trained parameters, once per observation; `obs` as in `forward`."""
        return ()

    def forward(self, net: Net, obs: Tensor, context: Context) -> Output:
        """The net's logits and values on `obs`, and other results of the pass that `rewards` and `losses` need.

        `obs` are (B, stack, H, W) uint8, or floats from `kfrl.nets.memory_format.screens`. Every net starts with that
        function, which returns floats unchanged.
        """
        return Output(*net(obs))

    def forward_with_state(
        self, net: Net, obs: Tensor, context: Context, state: Tensor, ended: Tensor | None = None
    ) -> tuple[Output, Tensor]:
        """`forward` of a recurrent net, and the next states (K, S).

        `obs` are those of one step of K games, or of T steps, step by step; `state` (K, S) is before the first step,
        and `ended` (T, K) tells where an episode ended with a step.
        """
        logits, values, after = cast(Any, net).step(obs, state, ended)
        return Output(logits, values), after

    def after_rollout(self, rollout: Rollout) -> None:
        """Called after each rollout, before its update."""

    def rewards(self, net: Net, rollout: Rollout) -> Tensor:
        """The rewards (T, K) for returns and advantages."""
        return rollout.rewards

    def acting_logits(self, logits: Tensor, context: Context) -> Tensor:
        """The logits (B, A) from which actions are drawn; `logits` are those of the net."""
        return logits

    def rl_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The actor-critic terms that are used: some of policy, value and entropy."""
        return terms

    def losses(self, net: Net, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named terms to add to the actor-critic loss: weighted scalars."""
        return {}

    def measure(self, batch: Batch, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Values of an update to log besides its losses; `terms` are all terms, before the backward pass."""
        return {}

    def after_update(self, net: Net, progress: float) -> None:
        """Called after each update, e.g. to project parameters; `net` is bound to the shared parameters."""

    def review(self, net: Net, step: int, games: Callable[[int], AtariEnvs]) -> Iterator[Review | None] | None:
        """Review the net during training, and change it if needed. The launcher calls this repeatedly between updates.

        Args:
            net: The net; other processes may train it at the same time.
            step: Agent steps of the phase that are done.
            games: Starts a number of games of the run's own game.

        Returns:
            None if no review is due. Else an iterator of short steps, which gives None, then the review. It is advanced
            once more when the statistics of the review's `fresh` are reset; only then other processes may follow.
        """
        return None

    def export(self, net: Net) -> nn.Module:
        """The net to save, evaluate and distribute; it plays the run's own game without teachers."""
        return copy.deepcopy(net)

    def independent(self, net: Net) -> bool:
        """Whether the trained net needs no teacher, so that the exported net has the same score."""
        return True

    def metrics(self, net: Net) -> dict[str, float]:
        """Metrics to log besides the losses."""
        return {}


def not_used(method: str, setting: str, given: object, why: str) -> UserError:
    """The refusal of a setting that has no effect on a method; `why` is a sentence that says what to do, too."""
    return UserError(
        f"Method {method} does not use --{setting.rpartition('.')[2].replace('_', '-')}, got {given}: {why}"
    )


AnyMethod: TypeAlias = Method[Any]
"""A method with any class of net."""
