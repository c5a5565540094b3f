"""Policy distillation (Rusu et al. 2016): the student imitates teachers in their own games, without rewards."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Generic, Literal

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from agents.actions import epsilon_greedy, in_order
from agents.answers import Answers, answers_for, open_all
from agents.batch import Batch, Context, Output
from agents.config import TrainConfig
from agents.methods.base import Method, NetSpec, Phase
from agents.replay import SAMPLE_BYTES, Memory, smaller_than_measured
from agents.teachers.formats import Teacher
from envs.protocols import get_protocol
from kfrl.config import Count, Direction, Fraction, Positive
from kfrl.errors import UserError
from kfrl.losses.distillation import directed_kl, negative_log_likelihood, squared_error
from kfrl.nets import arch_of
from kfrl.nets.atari.net import MultiTaskNet
from kfrl.nets.hooks import features_of, layer_shapes
from kfrl.optim.groups import ParameterGroup

EPSILON = 0.05
"""Probability of a random action when a Q-network plays."""
Q_TEMPERATURE = 0.01
"""The paper's temperature for Q values, which differ little between actions."""

MEASURED_MEMORY = 8_192
"""Samples in the replay buffer of a worker in the published figures."""


@dataclass(frozen=True)
class ImitationSettings:
    """Settings of all methods that imitate teachers' policies."""

    temperature: Positive | None = None
    """Temperature by which teachers' logits are divided. Default: 1; policy-distillation 0.01 for Q values (the
    papers)."""
    distill_actor: Literal["teacher", "student"] | None = None
    """The policy that plays the teachers' games. Default: the teacher in policy-distillation, the student in
    actor-mimic (the papers)."""
    epsilon: Fraction | None = None
    """Act epsilon-greedily with this probability of a random action (actor-mimic's paper: 0.1). Default: sample from
    the policy; with Q values, 0.05."""
    replay_reuse: Positive = 2.0
    """Samples drawn from the replay buffer for each sample of a rollout."""
    replay_memory: Count = 16_384
    """Samples in the replay buffers of all workers together; 28 KB each."""
    kl_direction: Direction = "forward"
    """forward: KL[teacher || student] as in the papers; reverse: KL[student || teacher]; mixed: the mean of both."""


@dataclass(frozen=True)
class Settings(ImitationSettings):
    """Policy distillation."""

    distill_loss: Literal["kl", "nll", "mse"] = "kl"
    """Loss: KL to the teacher's policy, negative log-likelihood of its best action, or squared error of its logits or Q
    values. The paper compares all three; KL is best."""


Net = TypeVar("Net", bound=MultiTaskNet)


class Imitation(Method[Net], Generic[Net]):
    """Base class of methods in which a student imitates one teacher in each of their games.

    Samples are drawn from the replay buffer of each worker, so that a batch is of one game; or from stored answers, and
    then no game is played and no teacher is run.
    """

    takes_teachers = "some"
    takes_answers = "instead"
    trains_value = False
    Settings = ImitationSettings
    teacher_acts = True
    """Whether the teacher acts by default."""
    q_temperature = Q_TEMPERATURE

    def __init__(self, config: TrainConfig) -> None:
        """Store the settings; `build` gets the teachers."""
        super().__init__(config)
        self._teachers: dict[str, Teacher] = {}
        self._memory = Memory(self.own.replay_memory // config.shape.workers)
        self._answers: dict[str, Answers] = {}

    @property
    def memory_bytes(self) -> float:
        """Bytes of the replay buffers; stored answers stay on the disk."""
        return 0.0 if self.config.answers else float(SAMPLE_BYTES * self.own.replay_memory)

    def notes(self, net: Net) -> Sequence[str]:
        """A sentence on the stored answers, if there are any, or on replay buffers that are smaller than measured."""
        if not self._answers:
            workers = self.config.shape.workers
            return smaller_than_measured("replay-memory", self.own.replay_memory, workers, MEASURED_MEMORY)
        held = "; ".join(
            f"{file.path.name}, {file.card.count:,} observations of {file.card.steps:,} steps played by "
            f"{file.card.played_by}"
            for file in self._answers.values()
        )
        return (
            "While the student imitates, no game is played and no teacher is run: each step counts as "
            f"{self.own.replay_reuse:g} samples of {held}.",
        )

    def parameter_groups(self, net: Net) -> list[ParameterGroup]:
        """The parameters that all games train, and a lazy group for each game's own."""
        own = [tuple(part.parameters()) for part in self.parts_of_games(net)]
        apart = {id(parameter) for part in own for parameter in part}
        shared = tuple(p for p in net.parameters() if p.requires_grad and id(p) not in apart)
        return [ParameterGroup(shared), *(ParameterGroup(part, lazy=True) for part in own)]

    @abstractmethod
    def parts_of_games(self, net: Net) -> list[nn.Module]:
        """For each game, the part of the net that only this game trains."""

    def take(self, teachers: Sequence[Teacher], specs: Sequence[NetSpec]) -> None:
        """Store the teachers by game; each game needs one, with at least one action of the game.

        Raises:
            UserError: a game has no suitable teacher or no stored answers, or two teachers have the same game.
        """
        self._teachers = {teacher.card.game: teacher for teacher in teachers}
        if len(self._teachers) < len(teachers):
            raise UserError(
                f"Method {self.config.method_name} accepts one teacher for each game, got "
                f"{', '.join(f'{teacher.name} for {teacher.card.game}' for teacher in teachers)}."
            )
        self._answers = {file.card.game: file for file in open_all(self.config.answer_files)}
        for teacher in teachers:
            if not self._answers:
                _layers(teacher)
        for spec in specs:
            if spec.game not in self._teachers:
                raise UserError(
                    f"No teacher plays {spec.game}, and {self.config.method_name} imitates one in its own game. Give a "
                    f"teacher of {spec.game}, or --game one of: {', '.join(self._teachers)}."
                )
            if self._answers:
                self._check_stored(spec)
            teacher = self._teachers[spec.game]
            if not set(teacher.card.actions) & set(spec.actions):
                raise UserError(
                    f"Teacher {teacher.name!r} has none of the actions of {spec.game} ({', '.join(spec.actions)}), "
                    f"only {', '.join(teacher.card.actions)}."
                )

    def _check_stored(self, spec: NetSpec) -> None:
        """Refuse stored answers of other rules than the run's, and --distill-actor with stored answers."""
        answers_for(tuple(self._answers.values()), get_protocol(self.config.protocol, spec.game))
        if self.own.distill_actor is not None:
            raise UserError(
                f"--distill-actor {self.own.distill_actor} has no effect with --answers, because no game is played. "
                "Leave it out; `kfrl collect --actor` chooses the policy that plays."
            )

    @property
    def teacher(self) -> Teacher:
        """The teacher of this process's game."""
        return self._teachers[self.task.game]

    def read(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits in the order of the game's actions (B, A), and its last hidden activations (B, H)."""
        net = self.teacher.net
        hidden, policy = _layers(self.teacher)
        seen = features_of(net, (hidden, policy), obs)
        return in_order(seen[policy], self.teacher.card.actions, self.task.actions), seen[hidden].relu()

    @property
    def guided(self) -> bool:
        """Whether the teacher plays, and not the student."""
        return (self.own.distill_actor or ("teacher" if self.teacher_acts else "student")) == "teacher"

    def acting_logits(self, logits: Tensor, context: Context) -> Tensor:
        """The logits of the actor that the settings choose: the teacher or the student."""
        acting, epsilon = context[0] if self.guided else logits, self.own.epsilon
        if epsilon is None and self._q_values and self.guided:
            epsilon = EPSILON
        return acting if epsilon is None else epsilon_greedy(acting, epsilon)

    def remembered(self, batch: Batch) -> tuple[Tensor, ...]:
        """Samples from the replay buffer, to which the rollout is added, or from stored answers.

        Returns:
            Observations, and the teacher's outputs on them as in `features`.
        """
        count = max(1, round(len(batch.values) * self.own.replay_reuse))
        if self._answers:
            file = self._answers[self.task.game]
            rows = torch.randint(file.card.count, (count,))
            drawn = (file.observations[rows], *self.stored(file, rows))
            return tuple(part.to(batch.values.device) for part in drawn)
        self._memory.add(batch.obs, *batch.context)
        return self._memory.draw(count)

    @abstractmethod
    def stored(self, file: Answers, rows: Tensor) -> tuple[Tensor, ...]:
        """The outputs of `features` for `rows` (n,) of a file, read from its stored answers."""

    @property
    def temperature(self) -> float:
        """Tau: the setting, or the default for the teacher's kind of head."""
        return self.own.temperature or (self.q_temperature if self._q_values else 1.0)

    @property
    def _q_values(self) -> bool:
        return getattr(self.teacher.net, "head", "") == "q"

    def export(self, net: Net) -> nn.Module:
        """The body with the heads of the run's own game."""
        return copy.deepcopy(net.student)


class PolicyDistillation(Imitation[MultiTaskNet]):
    """L_KL = sum_a softmax(q_T / tau)(a) ln( softmax(q_T / tau)(a) / softmax(q_S)(a) ), or L_NLL, or L_MSE.

    The student has a head for each game.
    """

    takes_sources = "teachers-beside"
    Settings = Settings
    unused = MappingProxyType(
        dict.fromkeys(
            ("gamma", "entropy_coef", "value_loss_coef", "ppo.clip_range", "ppo.gae_lambda"),
            "the student imitates, and no rewards are used. Leave it out.",
        )
    )
    former_settings = ("feature_coef",)

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """All teachers' games at the same time."""
        stored = bool(self.config.answers)
        return (Phase((spec, *spec.sources), self.config.steps, imitates=stored, guided=self.guided, stored=stored),)

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> MultiTaskNet:
        """The student, with a head for its own game and one for each other teacher's game.

        Raises:
            UserError: a teacher cannot be imitated, or a direction is given for a loss other than KL.
        """
        if self.own.kl_direction != "forward" and self.own.distill_loss != "kl":
            raise UserError(
                f"--kl-direction {self.own.kl_direction} is a direction of --distill-loss kl, got --distill-loss "
                f"{self.own.distill_loss}. Leave it out."
            )
        self.take(teachers, (spec, *spec.sources))
        student = self.student(spec)
        student.value.requires_grad_(False)
        return MultiTaskNet(student, {source.game: len(source.actions) for source in spec.sources})

    def parts_of_games(self, net: MultiTaskNet) -> list[nn.Module]:
        """The heads, if there are several."""
        return [net.student.policy, *net.policies.values()] if len(net.policies) else []

    def features(self, net: MultiTaskNet, obs: Tensor) -> Context:
        """The teacher's logits; -inf for an action that it lacks."""
        return self.read(obs)[:1]

    def stored(self, file: Answers, rows: Tensor) -> tuple[Tensor, ...]:
        """The teacher's logits."""
        return (file.logits(self.teacher, self.task.actions, rows),)

    def forward(self, net: MultiTaskNet, obs: Tensor, context: Context) -> Output:
        """Logits of the head of this process's game."""
        game = self.task.game
        return Output(*net(obs, game if game in net.policies else None))

    def rl_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """None: rewards are not used."""
        return {}

    def losses(self, net: MultiTaskNet, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The distillation loss on samples of the replay buffer, scaled like a sum over a rollout."""
        obs, targets = self.remembered(batch)
        logits = self.forward(net, obs, ()).logits
        loss = {"kl": self._kl, "nll": negative_log_likelihood, "mse": squared_error}[self.own.distill_loss]
        return {"distillation": loss(logits, targets).mean() * len(batch.values) / batch.num_envs}

    def _kl(self, logits: Tensor, targets: Tensor) -> Tensor:
        return directed_kl(logits, targets / self.temperature, self.own.kl_direction)


def _layers(teacher: Teacher) -> tuple[str, str]:
    """The names of the teacher's last hidden layer and of its layer of logits.

    Raises:
        UserError: the net does not name its layers.
    """
    hidden, heads = getattr(teacher.net, "hidden_layers", ()), getattr(teacher.net, "head_layers", ())
    if not (hidden and heads):
        raise UserError(
            f"Teacher {teacher.name!r} is a {type(teacher.net).__name__}, which does not name its hidden layers and "
            "heads, so it cannot be imitated."
        )
    return hidden[-1], heads[0]


def hidden_units(teacher: Teacher) -> int:
    """The number of activations of the teacher's last hidden layer."""
    hidden, _ = _layers(teacher)
    arch = arch_of(teacher.net)
    stack, size = arch["frame_stack"], arch["screen_size"]
    obs = torch.zeros(1, stack, size, size, dtype=torch.uint8)
    return prod(layer_shapes(teacher.net, [hidden], obs)[hidden])


METHOD = PolicyDistillation
