"""Actor-mimic (Parisotto et al. 2016): imitate several teachers in their games, then learn another game."""

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

    The run's own game is learned with the pre-trained body and new heads, those of the student.
    """

    def __init__(self, student: AtariNet, features: dict[str, int]) -> None:
        """Add the head and the feature nets; `features` maps a game to the units of its teacher's last hidden layer."""
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
    """L = -sum_a pi_E(a) log pi_AMN(a) + lambda ||f_i(h_AMN) - h_E||^2 in the teachers' games, then plain RL."""

    takes_sources = "teachers-before"
    Settings = Settings
    former_settings = ("distill_loss",)
    trains_value = True
    teacher_acts = False
    q_temperature = 1.0

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """First all teachers' games at the same time, then the run's own game."""
        assert self.config.source_steps is not None
        stored = bool(self.config.answers)
        return (
            Phase(
                spec.sources, self.config.source_steps, source=True, imitates=stored, guided=self.guided, stored=stored
            ),
            Phase((spec,), self.config.steps),
        )

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> MimicNet:
        """The student, with the head and the feature nets for imitation."""
        self.take(teachers, spec.sources)
        units = {
            teacher.card.game: self._stored_features(teacher).shape[1] if self._answers else hidden_units(teacher)
            for teacher in teachers
        }
        return MimicNet(self.student(spec), units)

    @property
    def imitates(self) -> bool:
        """Whether this is the phase of the teachers' games."""
        return self.phase == 0

    def begin(self, net: MimicNet, phase: int, task: NetSpec, rank: int) -> None:
        """Train the body, the shared head and the feature nets in the first phase, then only the student."""
        super().begin(net, phase, task, rank)
        for part in (net.policies, net.regressors):
            part.requires_grad_(self.imitates)
        for head in net.student.head_layers:
            net.student.get_submodule(head).requires_grad_(not self.imitates)

    def parts_of_games(self, net: MimicNet) -> list[nn.Module]:
        """The feature nets, while they are trained."""
        return list(net.regressors.values()) if self.imitates else []

    def features(self, net: MimicNet, obs: Tensor) -> Context:
        """The teacher's logits and last hidden activations."""
        return self.read(obs) if self.imitates else ()

    def stored(self, file: Answers, rows: Tensor) -> tuple[Tensor, ...]:
        """The teacher's logits and last hidden activations."""
        logits = file.logits(self.teacher, self.task.actions, rows)
        return logits, self._stored_features(self.teacher)[rows].relu()

    def _stored_features(self, teacher: Teacher) -> Tensor:
        """The teacher's last hidden pre-activations in its file of answers, (N, H)."""
        file = self._answers[teacher.card.game]
        return file.features(teacher, file.asked(teacher).hidden)

    def forward(self, net: MimicNet, obs: Tensor, context: Context) -> Output:
        """Logits of the shared head for the game's actions; in the run's own game those of the student."""
        if not self.imitates:
            return Output(*net(obs))
        logits, values = net(obs, MIMIC)
        return Output(in_order(logits, ALL_ACTIONS, self.task.actions), values)

    def acting_logits(self, logits: Tensor, context: Context) -> Tensor:
        """The student's logits; in the teachers' games, those of the actor that the settings choose."""
        return super().acting_logits(logits, context) if self.imitates else logits

    def rl_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The actor-critic terms in the run's own game; none in the teachers' games."""
        return {} if self.imitates else terms

    def losses(self, net: MimicNet, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Policy and feature regression on samples of the replay buffer, scaled like a sum over a rollout."""
        if not self.imitates:
            return {}
        obs, targets, features = self.remembered(batch)
        h = net.student.body(obs)
        logits = in_order(net.policies[MIMIC](h), ALL_ACTIONS, self.task.actions)
        distance = (net.regressors[self.task.game](h) - features).square().sum(1)
        steps = len(batch.values) / batch.num_envs
        soft, way = targets / self.temperature, self.own.kl_direction
        # The paper's cross-entropy is KL[teacher || student] plus the teacher's entropy, which has no gradient.
        loss = cross_entropy(logits, soft) if way == "forward" else directed_kl(logits, soft, way)
        terms = {"distillation": steps * loss.mean()}
        if self.own.feature_coef:
            terms["features"] = self.own.feature_coef * steps * distance.mean()
        return terms


METHOD = ActorMimic
