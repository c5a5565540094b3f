"""Actor-mimic (Parisotto et al. 2016): imitate several teachers in their games, then learn another from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from agents.actions import in_order
from agents.answers import Answers
from agents.batch import Batch, Context, Output
from agents.methods.base import NetSpec, Phase
from agents.methods.policy_distillation import Imitation, ImitationSettings, hidden_units
from agents.teachers.formats import Teacher
from envs.atari import ALL_ACTIONS
from kfrl.config import NonNegative
from kfrl.losses.distillation import cross_entropy, directed_kl
from kfrl.nets.atari.net import AtariNet, MultiTaskNet
from kfrl.nets.init import orthogonal

MIMIC = "mimic"


class MimicNet(MultiTaskNet):
    """A body with a head of 18 actions for all teachers' games, a feature net f_i for each of them, and its own heads.

    Body and own heads are what the run's own game is learned with: the body goes over as it is, the last layer is new.
    """

    def __init__(self, student: AtariNet, features: dict[str, int]) -> None:
        """Add the head and, game -> units of its teacher's last hidden layer, the feature nets."""
        super().__init__(student, {MIMIC: len(ALL_ACTIONS)})
        hidden = student.arch["hidden"]
        self.regressors = nn.ModuleDict({game: nn.Linear(hidden, units) for game, units in features.items()})
        orthogonal(self.regressors, dict.fromkeys(features, 1.0))


@dataclass(frozen=True)
class Settings(ImitationSettings):
    """Actor-mimic."""

    feature_coef: NonNegative = 0.01
    """lambda, the weight of the regression on the teacher's last hidden layer."""


class ActorMimic(Imitation[MimicNet]):
    """L = -sum_a pi_E(a) log pi_AMN(a) + lambda ||f_i(h_AMN) - h_E||^2 in the teachers' games, then plain learning."""

    takes_sources = "teachers-before"
    Settings = Settings
    former_settings = ("distill_loss",)
    trains_value = True
    teacher_acts = False
    q_temperature = 1.0

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """All teachers' games at the same time, then the run's own."""
        assert self.config.source_steps is not None
        stored = bool(self.config.answers)
        return (
            Phase(spec.sources, self.config.source_steps, source=True, imitates=stored, stored=stored),
            Phase((spec,), self.config.steps),
        )

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> MimicNet:
        """The student of the own game, with what it needs to imitate."""
        self.take(teachers, spec.sources)
        units = {
            teacher.card.game: self._stored_features(teacher).shape[1] if self._answers else hidden_units(teacher)
            for teacher in teachers
        }
        return MimicNet(self.student(spec), units)

    @property
    def imitates(self) -> bool:
        """Whether the teachers' games are played, not yet the run's own."""
        return self.phase == 0

    def begin(self, net: MimicNet, phase: int, task: NetSpec, rank: int) -> None:
        """Train body, shared head and feature nets; then the student alone."""
        super().begin(net, phase, task, rank)
        for part in (net.policies, net.regressors):
            part.requires_grad_(self.imitates)
        for head in net.student.head_layers:
            net.student.get_submodule(head).requires_grad_(not self.imitates)

    def parts_of_games(self, net: MimicNet) -> list[nn.Module]:
        """The feature nets, as long as they train."""
        return list(net.regressors.values()) if self.imitates else []

    def features(self, net: MimicNet, obs: Tensor) -> Context:
        """The teacher's logits and last hidden activations."""
        return self.read(obs) if self.imitates else ()

    def stored(self, file: Answers, rows: Tensor) -> tuple[Tensor, ...]:
        """The teacher's logits and last hidden activations."""
        logits = file.logits(self.teacher, self.task.actions, rows)
        return logits, self._stored_features(self.teacher)[rows].relu()

    def _stored_features(self, teacher: Teacher) -> Tensor:
        """The last hidden pre-activations in its file of answers, (N, H)."""
        file = self._answers[teacher.card.game]
        return file.features(teacher, file.asked(teacher).hidden)

    def forward(self, net: MimicNet, obs: Tensor, context: Context) -> Output:
        """Of the head of 18 actions those that the game has; in the run's own game the student's own."""
        if not self.imitates:
            return Output(*net(obs))
        logits, values = net(obs, MIMIC)
        return Output(in_order(logits, ALL_ACTIONS, self.task.actions), values)

    def acting_logits(self, logits: Tensor, context: Context) -> Tensor:
        """The student's policy, or the teacher's in the teachers' games."""
        return super().acting_logits(logits, context) if self.imitates else logits

    def rl_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rewards count in the run's own game."""
        return {} if self.imitates else terms

    def losses(self, net: MimicNet, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Policy and feature regression on samples from memory, scaled as a rollout's sum."""
        if not self.imitates:
            return {}
        obs, targets, features = self.remembered(batch)
        h = net.student.body(obs)
        logits = in_order(net.policies[MIMIC](h), ALL_ACTIONS, self.task.actions)
        distance = (net.regressors[self.task.game](h) - features).square().sum(1)
        steps = len(batch.values) / batch.num_envs
        soft, way = targets / self.temperature, self.own.kl_direction
        # The paper's cross-entropy is KL[teacher || student] and the teacher's entropy, which does not train.
        loss = cross_entropy(logits, soft) if way == "forward" else directed_kl(logits, soft, way)
        terms = {"distillation": steps * loss.mean()}
        if self.own.feature_coef:
            terms["features"] = self.own.feature_coef * steps * distance.mean()
        return terms


METHOD = ActorMimic
