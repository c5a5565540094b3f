"""What a method is: a network plus loss terms, plugged into the loop of any engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, cast

from torch import Tensor, nn
from typing_extensions import TypeVar

from agents.batch import Batch, Context, Output, Rollout
from agents.config import TrainConfig
from agents.teachers.formats import Teacher
from envs.atari import AtariEnvs
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.init import start
from kfrl.optim.groups import ParameterGroup
from kfrl.training.method import OwnSettings

N = TypeVar("N", bound=nn.Module)
Net = TypeVar("Net", bound=nn.Module, default=AtariNet)
"""What a method's `build` returns, and every other hook gets; a method of another net than `AtariNet` names it."""


@dataclass(frozen=True)
class NetSpec:
    """A game, and what a net that plays it must fit."""

    game: str
    """The ROM's name."""
    actions: tuple[str, ...]
    """The names of the A actions, in the order of the logits."""
    sources: tuple[NetSpec, ...] = ()
    """The run's source games."""


@dataclass(frozen=True)
class Phase:
    """A part of a run: games that are learned at the same time, in one way."""

    games: tuple[NetSpec, ...]
    """What the workers play, as evenly divided as can be; the run's own game first, if it is among them."""
    steps: int
    """Agent steps: of the run's own game, or of all source games together in a `source` phase."""
    title: str = ""
    """What it is called, where a run has several phases of the same games."""
    lr: tuple[float, float] = (1.0, 0.0)
    """The learning rate at its start and at its end, as shares of the run's; linear between them."""
    warm_up: float = 0.0
    """Share of the phase in which the rate grows from 0: Adam's first steps at full rate undo what the net knows."""
    t_max: int | None = None
    """Steps of a rollout; default: the run's."""
    imitates: bool = False
    """Rewards do not count: one update by Adam a rollout, from the method's own losses alone, on every engine."""
    stored: bool = False
    """No game is played: updates draw from stored answers, and each step counts for one sample of a rollout."""
    source: bool = False
    """It prepares the run's own learning: its steps are source steps, even those in a game of the same name."""

    def lr_share(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1], as a share of the run's."""
        start, end = self.lr
        share = start + (end - start) * progress
        return share * min(1.0, progress / self.warm_up) if self.warm_up else share


class Play(Protocol):
    """Plays the run's own game and gives observations of it. The steps count."""

    def __call__(self, count: int, policy: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(count, stack, H, W) uint8, every fourth step of several games.

        Args:
            count: How many, rounded up to a multiple of the games.
            policy: (B, stack, H, W) -> logits (B, A); without one, random play.
        """


@dataclass(frozen=True)
class Review:
    """The result of a review of the net during training."""

    lines: tuple[str, ...] = ()
    """Sentences for whoever watches the run."""
    history: tuple[dict[str, Any], ...] = ()
    """Rows for the run's history.csv, all of the same columns."""
    fresh: tuple[nn.Parameter, ...] = ()
    """Parameters that have begun anew: the optimiser's statistics of them go back to 0."""


class Method(OwnSettings, Generic[Net]):
    """A method with nothing to add: the base that the others override, and all that scratch A3C needs.

    One instance lives in each process. `progress` is the share of the phase's steps that are done, in [0, 1]; most
    methods have one phase.
    """

    takes_teachers = "none"
    """`none`, `one` or `some`."""
    takes_sources = "none"
    """`none`; `beside` or `before`: --source-games, at the same time or in phases before; `teachers-beside` or
    `teachers-before`: the games that its teachers play, likewise."""
    takes_answers = "none"
    """What it makes of --answers: `none`; `instead`: teachers are not needed beside them; `beside`: they are."""
    algos: tuple[str, ...] = ("a3c", "a2c", "ppo", "acktr")
    """The values of `--algo` that it runs under."""
    takes_init = True
    """Whether what it trains can start from other weights than its own (--init)."""
    games_in_turn = False
    """Whether one learner may learn several games, a rollout and an update of each in turn: `task` says of which."""
    leans_on_teachers = False
    """Whether a trained net may need its teachers beside what is exported; `independent` says when it does not."""
    trains_value = True
    """Whether the value head of what it exports is trained."""
    former_hooks = (("observe", "features"), ("before_rollout", "after_rollout"))
    phase: int = 0
    """The index of the phase that this process is in."""
    features_of: Hashable = None
    """What `features` depends on beside the observations; where it changes, those at hand are computed anew."""
    task: NetSpec
    """The game that this process plays; set by `begin`."""

    def __init__(self, config: TrainConfig) -> None:
        """Keep the run's settings."""
        self.config = config

    @property
    def memory_bytes(self) -> float:
        """Bytes that all learners together remember of earlier play, when their memories are full."""
        return 0.0

    @classmethod
    def check_teachers(cls, name: str, count: int) -> None:
        """Refuse a number of teachers that the method cannot use.

        Raises:
            UserError: saying how many it takes.
        """
        if cls.takes_teachers == "none" and count:
            learns = cls.takes_sources in ("beside", "before")
            instead = "It learns other games itself: --source-games NAME[,NAME]" if learns else "Leave them out"
            raise UserError(
                f"Method {name} takes no teachers, got {count}. {instead}, or use --method knowledge-flow or fine-tune."
            )
        if cls.takes_teachers == "one" and count != 1:
            raise UserError(f"Method {name} takes exactly one teacher (--teachers NAME), got {count}.")
        if cls.takes_teachers == "some" and not count:
            raise UserError(
                f"Method {name} needs at least one teacher: --teachers NAME[,NAME...]; "
                "`kfrl teachers list` shows what there is."
            )

    @classmethod
    def check_sources(cls, name: str, count: int, steps: int | None) -> None:
        """Refuse source games that the method cannot use, or their absence.

        Raises:
            UserError: saying what it takes.
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
            raise UserError(f"Method {name} learns no game before its own, so --source-steps {steps:,} means nothing.")

    @classmethod
    def check_answers(cls, name: str, files: int) -> None:
        """Refuse stored answers that the method would not read.

        Raises:
            UserError: saying which methods do.
        """
        if cls.takes_answers == "none" and files:
            raise UserError(
                f"Method {name} does not read --answers. policy-distillation and actor-mimic learn from them, and "
                "knowledge-flow folds on them."
            )

    @classmethod
    def check_init(cls, name: str, init: str) -> None:
        """Refuse a start of weights that the method would not use.

        Raises:
            UserError: its nets start in a way of their own.
        """
        if init != "orthogonal" and not cls.takes_init:
            raise UserError(
                f"Method {name} starts its nets' weights in a way of its own (its page says how), got --init {init}. "
                "Leave it out."
            )

    @classmethod
    def check_algo(cls, name: str, algo: str) -> None:
        """Refuse an algorithm that the method cannot run under.

        Raises:
            UserError: saying which it can.
        """
        if algo not in cls.algos:
            raise UserError(f"Method {name} does not run under --algo {algo}, only under {' or '.join(cls.algos)}.")

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> Net:
        """The network that trains: obs (B, stack, H, W) uint8 -> logits (B, A), values (B,)."""
        return cast(Net, self.student(spec))

    def student(self, spec: NetSpec) -> AtariNet:
        """A fresh plain net for a game, as the settings say."""
        return self.started(AtariNet(len(spec.actions), self.config.convs, self.config.hidden))

    def started(self, net: N) -> N:
        """A fresh net, its weights from what the settings name."""
        start(net, self.config.init)
        return net

    def prepare(self, net: Net, play: Play) -> Iterable[str]:
        """Fit a new run's net, as `build` made it, to its game, once, in the launcher.

        Returns:
            Sentences for whoever watches the run, as they come.
        """
        return ()

    def notes(self, net: Net) -> Sequence[str]:
        """Sentences for whoever starts a run, of what its settings amount to."""
        return ()

    def caveat(self, net: Net) -> str:
        """A sentence to be quoted with the trained net's scores; the net's file has it."""
        return ""

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """What is learned, in turn; the run's own game is among the games of the last phase."""
        return (Phase((spec,), self.config.steps),)

    def fitted_phases(self, net: Net, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """`phases` as a net needs them that `prepare` or `end_phase` has fitted; one of no steps is passed over.

        Their order and number stay, so does the sum of their steps.
        """
        return phases

    def begin(self, net: Net, phase: int, task: NetSpec, rank: int) -> None:
        """Take up a phase: called in every process, on every copy of the net, before anything below.

        Args:
            net: With all that its `state_dict` holds as the phase starts or was interrupted.
            phase: Index into `phases`.
            task: The game that this process plays.
            rank: The learner's number.
        """
        self.phase, self.task = phase, task

    def end_phase(self, net: Net, play: Play) -> Iterable[str]:
        """Make the net ready for the next phase, once, in the launcher. The optimiser starts afresh by itself.

        What later phases have to know of this one stands in the net, in tensors of its `state_dict`.

        Returns:
            Sentences for whoever watches the run, as they come.
        """
        return ()

    def parameter_groups(self, net: Net) -> list[ParameterGroup]:
        """What the optimiser updates in this phase: all that is not frozen.

        All other tensors of the net's `state_dict` are one copy for all processes.
        """
        return [ParameterGroup(tuple(p for p in net.parameters() if p.requires_grad))]

    def schedule(self, net: Net, progress: float) -> None:
        """Bring the schedules that live in the net up to date, and nothing else: any process may ask, at any time."""

    def features(self, net: Net, obs: Tensor) -> Context:
        """Compute what does not depend on the trained parameters, once per observation; `obs` as `forward` takes it."""
        return ()

    def forward(self, net: Net, obs: Tensor, context: Context) -> Output:
        """What the net says of `obs`, and what else of this pass `rewards` and `losses` read.

        `obs` are (B, stack, H, W) uint8, or the floats that `kfrl.nets.memory_format.screens` made of them and would
        leave as they are: every net begins with it.
        """
        return Output(*net(obs))

    def after_rollout(self, rollout: Rollout) -> None:
        """Take note of what was played; an update from it follows."""

    def rewards(self, net: Net, rollout: Rollout) -> Tensor:
        """The rewards (T, K) that returns and advantages are made of."""
        return rollout.rewards

    def acting_logits(self, logits: Tensor, context: Context) -> Tensor:
        """The logits (B, A) that actions are drawn from; `logits` are the net's own."""
        return logits

    def rl_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is kept of the actor-critic's own terms: policy, value, entropy."""
        return terms

    def losses(self, net: Net, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named terms to add to the actor-critic loss: scalars, already weighted."""
        return {}

    def measure(self, batch: Batch, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """What to log of an update beside its losses; `terms` are the whole objective, before the backward pass."""
        return {}

    def after_update(self, net: Net, progress: float) -> None:
        """Put the shared parameters back where they belong; `net` is bound to shared memory."""

    def review(self, net: Net, step: int, games: Callable[[int], AtariEnvs]) -> Iterator[Review | None] | None:
        """Look at the net along the way, and perhaps change it. The launcher asks between updates, again and again.

        Args:
            net: Whose parameters others may train meanwhile.
            step: Agent steps of the phase that are done.
            games: Starts so many games of the run's own.

        Returns:
            None as long as nothing is due. Else an iterator, each turn of which takes a moment and gives None, and the
            last one what was found.
        """
        return None

    def export(self, net: Net) -> nn.Module:
        """The net to save, evaluate and ship: plays the run's own game and depends on no teacher."""
        return copy.deepcopy(net)

    def independent(self, net: Net) -> bool:
        """Whether the trained net needs no teacher any more, so that its score is the exported net's."""
        return True

    def metrics(self, net: Net) -> dict[str, float]:
        """What to log beside the losses."""
        return {}


AnyMethod: TypeAlias = Method[Any]
"""A method of any net."""
