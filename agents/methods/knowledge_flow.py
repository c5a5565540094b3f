"""Knowledge Flow (Liu et al., ICLR 2019) as a method of the A3C loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from agents.config import TrainConfig
from agents.engines.shared import flatten, named_views
from agents.methods.base import Batch, Context, Method, NetSpec, ParameterGroup
from agents.replay import Memory
from agents.teachers.formats import Teacher
from kfrl.flow import HandOver, KnowledgeFlow, Link, dependence_weight, links_by_depth
from kfrl.flow.handover import Lessons, handover_loss
from kfrl.losses.knowledge_flow import dependence_loss, policy_kl_loss
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.memory_format import screens

RECENT = 20
"""Games in a worker's running mean score."""


class GuidedFlow(KnowledgeFlow):
    """A linked student with a place for the guide of its hand-over: its own parameters of the ramp's beginning.

    They are tensors of its `state_dict` that do not train, so all workers share them and checkpoints hold them.
    """

    guide: Tensor
    """(N,) all that trains; meaningless until `guided`."""
    guided: Tensor
    """() bool"""
    linked_scores: Tensor
    """(workers,) each worker's mean score before the ramp; NaN until it has one."""

    def make_room(self, groups: Sequence[ParameterGroup], workers: int) -> None:
        """For a guide of the parameters of `groups`."""
        self.register_buffer("guide", torch.zeros_like(flatten(groups)))
        self.register_buffer("guided", torch.tensor(False))
        self.register_buffer("linked_scores", torch.full((workers,), torch.nan))


class KnowledgeFlowMethod(Method):
    """total = A3C loss + lambda_1(t) l_dep + lambda_2 l_KL (eq. 4), and a deliberate hand-over to the student."""

    takes_teachers = "some"
    leans_on_teachers = True
    config_groups = ("flow",)

    def __init__(self, config: TrainConfig) -> None:
        """Keep the settings."""
        super().__init__(config)
        self.flow_config = config.flow
        self.hand_over = HandOver(config.flow.handover_start, config.flow.independence_at)
        self._rank = 0
        self._scores: deque[float] = deque(maxlen=RECENT)
        self._first_share = 1.0
        self._distils = False
        self._memory = Memory(config.flow.handover_memory // config.shape.workers)

    def begin(self, net: nn.Module, phase: int, task: NetSpec, rank: int) -> None:
        """Remember which worker this is."""
        super().begin(net, phase, task, rank)
        self._rank = rank

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> GuidedFlow:
        """The paper's student, linked to every teacher."""
        config = self.flow_config
        student = super().build(spec, ())
        nets = {teacher.name: teacher.net for teacher in teachers}
        links = [Link(link.student, link.teacher, link.layer) for link in config.links]
        if not links:
            links = links_by_depth(student, nets) + self._head_links(spec, teachers)
        assert isinstance(student, AtariNet)
        size, stack = student.arch["screen_size"], student.arch["frame_stack"]
        flow = GuidedFlow(
            student,
            nets,
            links,
            torch.zeros(1, stack, size, size, dtype=torch.uint8),
            transform=config.transform,
            rank=config.transform_rank,
            mixing=config.mixing,
            student_weight=config.student_weight,
        )
        _match_actions(flow, spec, teachers)
        # From non-experts come features, which the student outgrows by itself: all that its linked self could teach it
        # meanwhile is to play as badly.
        expert = config.handover_from == "any" or any(teacher.card.game == spec.game for teacher in teachers)
        self._distils = expert and config.handover_coef > 0.0
        self._first_share = _teachers_share([flow.mixing(layer)[0] for layer in flow.layers])
        if config.mixing == "simplex":
            flow.transforms.requires_grad_(False)
        flow.make_room(self.parameter_groups(flow), self.config.shape.workers)
        return flow

    def prepare(self, net: nn.Module, play: Callable[[], Tensor]) -> None:
        """Have the teachers' hidden features arrive at the fresh student's own scale.

        Logits and values keep theirs, which says how sure the teacher is.
        """
        assert isinstance(net, KnowledgeFlow)
        if self.flow_config.match_scales:
            heads = AtariNet.head_layers
            hidden = [link for link in net.links if not (link.student in heads and link.layer in heads)]
            net.match_scales(screens(play()), hidden)

    def notes(self, net: nn.Module) -> Sequence[str]:
        """Whether anything is distilled."""
        if self._distils or not self.flow_config.handover_coef:
            return ()
        return ("No teacher plays this game, so nothing is distilled; --handover-from any does so all the same.",)

    def _head_links(self, spec: NetSpec, teachers: Sequence[Teacher]) -> list[Link]:
        wanted = self.flow_config.link_heads
        linked = [
            teacher
            for teacher in teachers
            if wanted == "always" or (wanted == "expert" and teacher.card.game == spec.game)
        ]
        heads = AtariNet.head_layers
        return [Link(head, teacher.name, head) for head in heads for teacher in linked]

    def parameter_groups(self, net: nn.Module) -> list[ParameterGroup]:
        """Student and Q at the run's rate, w at its own.

        Under Adam the dependence gradient never changes sign, so p moves at lr times this factor an update, whatever
        lambda_1 is.
        """
        assert isinstance(net, KnowledgeFlow)
        body = [*net.student.parameters(), *net.transforms.parameters()]
        return [
            ParameterGroup(tuple(p for p in body if p.requires_grad)),
            ParameterGroup(tuple(net.mixing.parameters()), self.flow_config.layer_weights_lr),
        ]

    def schedule(self, net: nn.Module, progress: float) -> None:
        """Move the forced hand-over on."""
        assert isinstance(net, KnowledgeFlow)
        net.handover = self.hand_over(progress)

    def observe(self, net: nn.Module, obs: Tensor) -> Context:
        """The teachers' features, until independence."""
        assert isinstance(net, KnowledgeFlow)
        return () if net.independent else super().observe(net, obs)

    def features(self, net: nn.Module, obs: Tensor) -> Context:
        """The teachers' pre-activations."""
        assert isinstance(net, KnowledgeFlow)
        return net.teacher_features(screens(obs))

    def forward(self, net: nn.Module, obs: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The linked student's logits and values."""
        output: tuple[Tensor, Tensor] = net(obs, context)
        return output

    def losses(self, net: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """lambda_1(t) l_dep (eq. 5), lambda_2 l_KL (eq. 6) and, until independence, an expert's distillation."""
        assert isinstance(net, GuidedFlow)
        config = self.flow_config
        terms: dict[str, Tensor] = {}
        if config.policy_kl_coef:
            terms["policy_kl"] = config.policy_kl_coef * _policy_kl(batch)
        if net.independent:
            return terms
        p_student = [net.mixing(layer)[0] for layer in net.layers]
        # Like the other terms a sum over the rollout's steps, in each of which eq. 4 has it once.
        steps = len(batch.values) / batch.num_envs
        weight = dependence_weight(progress, config.dependence_coef)
        terms["dependence"] = steps * weight * dependence_loss(p_student)
        if self._distils:
            weight = max(1.0 - net.handover, self._deficit(net, batch)) * self._reliance(p_student)
            terms["handover"] = config.handover_coef * weight * self._handover(net, batch)
        return terms

    def _reliance(self, p_student: Sequence[Tensor]) -> float:
        """How much of their first weight the losses have left the teachers, in [0, 1].

        A student who has turned from its teachers by itself has nothing to be taught: what it would imitate is its
        own past.
        """
        return min(_teachers_share(p_student) / self._first_share, 1.0)

    def _deficit(self, net: GuidedFlow, batch: Batch) -> float:
        """How far the acting policy has fallen behind its linked self of the ramp's beginning, in [0, 1].

        The distillation fades with the ramp, so that a student who outgrows its teachers is not held back, and stays
        where the student loses points without them (the idea of QDagger: Agarwal et al. 2022).
        """
        self._scores.extend(episode.score for episode in batch.episodes)
        if not self._scores:
            return 0.0
        score = sum(self._scores) / len(self._scores)
        linked = net.linked_scores[self._rank]
        if net.handover == 0.0 or linked.isnan():
            linked.fill_(score)
        lost = (float(linked) - score) / max(abs(float(linked)), 1.0)
        return min(max(lost, 0.0), 1.0)

    def _handover(self, net: GuidedFlow, batch: Batch) -> Tensor:
        """The distillation, on as many times a rollout's samples as `handover_reuse` says."""
        self._memory.add(*self._lessons(net, batch))
        lessons = Lessons(*self._memory.draw(max(1, round(len(batch.values) * self.flow_config.handover_reuse))))
        logits, values = net.student(lessons.obs)
        steps = len(batch.values) / batch.num_envs
        return steps * handover_loss(logits, values, lessons).mean()

    def _lessons(self, net: GuidedFlow, batch: Batch) -> Lessons:
        """What the linked student says; once it is being cut off, what it would have said before.

        During the ramp the student acts more and more by itself, so it meets its own mistakes, and is told what its
        linked self of the ramp's beginning, frozen, would do there.
        """
        if net.handover == 0.0:
            return Lessons(batch.obs, batch.logits.detach(), batch.values.detach())
        groups = self.parameter_groups(net)
        if not net.guided:
            net.guide.copy_(flatten(groups))
            net.guided.fill_(True)
        handover, net.handover = net.handover, 0.0
        try:
            with torch.no_grad():
                logits, values = functional_call(net, named_views(net, groups, net.guide), (batch.obs, batch.context))
        finally:
            net.handover = handover
        return Lessons(batch.obs, logits, values)

    def after_update(self, net: nn.Module, progress: float) -> None:
        """Reproduction variant: p back on the simplex."""
        assert isinstance(net, KnowledgeFlow)
        net.mixing.renormalise()

    def export(self, net: nn.Module) -> nn.Module:
        """The student alone."""
        assert isinstance(net, KnowledgeFlow)
        return net.export()

    def independent(self, net: nn.Module) -> bool:
        """Whether the hand-over is complete."""
        assert isinstance(net, KnowledgeFlow)
        return net.independent

    def metrics(self, net: nn.Module) -> dict[str, float]:
        """The weights p of the student and of each teacher, per layer."""
        assert isinstance(net, KnowledgeFlow)
        return net.weights()


def _policy_kl(batch: Batch) -> Tensor:
    """Eq. 6, summed over the batch's steps; the samples that theta_old has spoken of anyway stand for all."""
    old_logits = batch.previous_logits
    if old_logits is None:
        return batch.logits.new_zeros(())
    steps = len(batch.values) / batch.num_envs
    return steps * policy_kl_loss(batch.logits[: len(old_logits)], old_logits).mean()


def _teachers_share(p_student: Sequence[Tensor]) -> float:
    """1 - p of the student, the mean over layers."""
    return 1.0 - float(torch.stack(list(p_student)).detach().mean())


@torch.no_grad()
def _match_actions(flow: KnowledgeFlow, spec: NetSpec, teachers: Sequence[Teacher]) -> None:
    """Start Q between policy heads as the matrix that joins actions of the same meaning."""
    actions = {teacher.name: teacher.card.actions for teacher in teachers}
    for link, transform in zip(flow.links, flow.transforms, strict=True):
        if link.student == link.layer == "policy" and hasattr(transform, "weight"):
            matrix = [[float(own == other) for other in actions[link.teacher]] for own in spec.actions]
            transform.get_parameter("weight").data.copy_(torch.tensor(matrix))


METHOD = KnowledgeFlowMethod
