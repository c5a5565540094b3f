"""Knowledge Flow (Liu et al., ICLR 2019) between image classifiers (sections 3 and 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kfrl.config import Fraction, NonNegative, Positive
from kfrl.errors import UserError
from kfrl.flow import HandOver, KnowledgeFlow, Link, links_by_depth
from kfrl.flow.fold import fold, observations_needed
from kfrl.flow.settings import FlowSettings
from kfrl.losses.distillation import kl_divergence
from kfrl.losses.knowledge_flow import dependence_loss, policy_kl_loss
from kfrl.nets import heads_of
from kfrl.nets.hooks import layers_in_use, unwrapped
from kfrl.optim.groups import ParameterGroup
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import (
    Method,
    Predictor,
    Progress,
    SoftTargets,
    Stage,
    Task,
    check_same_classes,
    distillation_terms,
)
from kfrl.supervised.teachers import teacher_logits

R2 = "fold/r2/"
"""Prefix of the metrics of the fold."""
SAMPLES = 32
"""Images, at most, that are drawn from a batch for l_KL and the hand-over: each needs a further forward pass."""


@dataclass(frozen=True)
class Settings(FlowSettings, SoftTargets):
    """Knowledge Flow between classifiers. Settings marked (+) go beyond the paper."""

    kl_coef: NonNegative = 0.01
    """lambda_2, weight of the KL divergence from the previous iteration's classifier."""
    layer_weights_lr: Positive = 1.0
    """Learning rate of w as a multiple of --lr (+)."""
    handover_coef: NonNegative = 1.0
    """Weight of the distillation of the linked net into the student alone, until independence (+)."""
    fold: bool = True
    """Initialise the student's linked layers from its teachers' most useful channels, by ridge regression on the
    training images (+), if a layer is a convolution or fully connected."""
    independence_at: Fraction | None = 0.4
    """Share of the run at which p of the student is exactly 1 (+). None leaves p to the losses, as the paper does."""
    handover_start: Fraction = 0.0
    """Share of the run at which p of the student begins its forced rise to 1 (+)."""
    link_heads: Literal["never", "expert", "always"] = "expert"
    """Link the logits too (+): to teachers of the same classes (expert), to all (always), or to none (never)."""
    soft_targets: bool = False
    """Learn from the soft targets of the teachers of the same classes too, with the weights of kd (Table 4)."""


class KnowledgeFlowMethod(Method[KnowledgeFlow]):
    """total = cross-entropy + lambda_1(t) l_dep + lambda_2 l_KL (eq. 3), and a forced hand-over to the student."""

    takes_teachers = "some"
    Settings = Settings

    def __init__(self, config: SupervisedConfig) -> None:
        """Keep the settings; theta_old is stored in the first update."""
        super().__init__(config)
        self.flow: Settings = self.own
        self.hand_over = HandOver(self.flow.handover_start, self.flow.independence_at)
        self._previous: dict[str, Tensor] = {}
        self._fold_r2: dict[str, float] = {}
        self._experts: tuple[Teacher, ...] = ()

    @classmethod
    def check_used(cls, config: SupervisedConfig) -> None:
        """Refuse weights of soft targets without soft targets, a rank without factors and a ramp without an end."""
        method = cls(config)
        own: Settings = method.own
        if own.transform != "low-rank":
            method.refuse_unused(("transform_rank",), "it is of --transform low-rank. Give that, or leave it out.")
        if own.independence_at is None:
            method.refuse_unused(
                ("handover_start",), "p of the student is not forced. Give --independence-at 0.4, or leave it out."
            )
        given = [one.name for one in fields(SoftTargets) if getattr(own, one.name) != one.default]
        if given and not own.soft_targets:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UserError(
                f"In knowledge-flow {flags} needs --soft-targets, to learn from the outputs of teachers of the same "
                f"classes. Give --soft-targets, or leave {flags} out."
            )

    def build(self, task: Task, teachers: Sequence[Teacher]) -> KnowledgeFlow:
        """The student, linked to every teacher; shapes, classes and data may all differ."""
        config, device = self.flow, torch.device(self.config.device)
        student = task.make_net().to(device)
        self._experts = tuple(teacher for teacher in teachers if teacher.card.classes == task.classes)
        if config.soft_targets and not self._experts:
            check_same_classes("knowledge-flow with --soft-targets", task, teachers)
        nets = {teacher.name: teacher.net for teacher in teachers}
        flow = KnowledgeFlow(
            student,
            nets,
            config.links or [*links_by_depth(student, nets), *self._head_links(student, teachers)],
            torch.zeros(2, *task.shape, device=device),
            transform=config.transform,
            rank=config.transform_rank,
            mixing=config.mixing,
            student_weight=config.student_weight,
        )
        return flow.to(device)

    def prepare(self, net: KnowledgeFlow, batches: Sequence[Tensor]) -> Iterator[str]:
        """Leave out useless teachers, choose the others' channels, and fold the links into the student's own layers.

        The student's own pre-activation then equals the teachers' mixture, so p may rise to 1 without a loss.
        """
        experts = [teacher.name for teacher in self._experts] if self.flow.soft_targets else []
        if reasons := net.leave_out_useless(batches[0], experts):
            yield from reasons.values()
            if self.flow.student_weight is not None:
                net.set_student_weight(self.flow.student_weight)
        if not self.flow.fold:
            return
        yield from net.choose_channels(batches[0], [link for link in net.links if link.teacher not in net.absent])
        used = layers_in_use(net.student, batches[0][:1])
        linked = {unwrapped(net.student, layer): layer for layer in net.layers}
        layers = sorted(takewhile(lambda layer: layer in used, linked), key=used.index)
        left_out = net.layers[len(layers) :]
        if left_out:
            kind = type(net.student.get_submodule(left_out[0])).__name__
            yield f"Not folded: {', '.join(left_out)}. A {kind} is not a linear map of its input; the others read it."
        if not layers:
            return
        plain = net.export()
        needed = max(observations_needed(plain, layers).values(), default=0)
        if sum(map(len, batches)) < needed:
            yield f"Not folded: it needs {needed:,} training images or more."
            return

        def mixture(layer: str, images: Tensor) -> Tensor:
            return net.mixture(linked[layer], images, teachers_alone=True)

        for folded in fold(plain, layers, mixture, batches, lambda layer: net.own_rows(linked[layer])):
            self._fold_r2[f"{R2}{linked[folded.layer]}"] = folded.r2
            yield f"Folded {folded}"
        net.student.load_state_dict(plain.state_dict())

    def _head_links(self, student: nn.Module, teachers: Sequence[Teacher]) -> list[Link]:
        linked = {"never": (), "expert": self._experts, "always": teachers}[self.flow.link_heads]
        return [
            Link(own, teacher.name, theirs)
            for teacher in linked
            for own, theirs in zip(heads_of(student), heads_of(teacher.net), strict=True)
        ]

    def stages(self, net: KnowledgeFlow) -> Sequence[Stage]:
        """One stage: student and Q at the run's rate, w at its own, without weight decay, which would even p out."""
        # The reproduction's Q is constant.
        trained = [net.student] if self.flow.mixing == "simplex" else [net.student, net.transforms]
        body = tuple(parameter for part in trained for parameter in part.parameters())
        weights = ParameterGroup(tuple(net.mixing.parameters()), self.flow.layer_weights_lr, weight_decay=False)
        return (Stage("train", self.config.epochs, (ParameterGroup(body), weights)),)

    def schedule(self, net: KnowledgeFlow, progress: Progress) -> None:
        """Advance the forced hand-over."""
        net.handover = self.hand_over(progress.in_run)

    def losses(self, net: KnowledgeFlow, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The task, lambda_1(t) l_dep (eq. 5), lambda_2 l_KL (eq. 6) and, until independence, the hand-over."""
        outputs: dict[str, Any] = {}
        features = net.teacher_features(batch.images, outputs)
        logits = net(batch.images, features)
        terms = self._task(logits, batch, outputs)
        rows = torch.randperm(len(batch.labels))[:SAMPLES].to(logits.device)
        if self.flow.kl_coef:
            kl = self._kl(net, batch.images[rows], tuple(part[rows] for part in features))
            terms["kl"] = self.flow.kl_coef * kl
        if net.independent:
            return terms
        p_student = [net.mixing(layer)[0] for layer in net.layers]
        terms["dependence"] = self.flow.lambda_1(progress.in_run) * dependence_loss(p_student)
        if self.flow.handover_coef:
            alone = net.student(batch.images[rows])
            terms["handover"] = self.flow.handover_coef * kl_divergence(logits[rows].detach(), alone).mean()
        return terms

    def _task(self, logits: Tensor, batch: Batch, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
        if not self.flow.soft_targets:
            return {"task": F.cross_entropy(logits, batch.labels)}
        # The forward pass of an independent student does not run the teachers.
        targets = [outputs[t.name] if t.name in outputs else teacher_logits(t, batch) for t in self._experts]
        return distillation_terms(self.flow, logits, batch.labels, targets)

    def _kl(self, net: KnowledgeFlow, images: Tensor, features: tuple[Tensor, ...]) -> Tensor:
        """l_KL against the previous iteration's parameters, both without dropout and with running batch statistics.

        Both nets are in one mode, because a difference by dropout or batch statistics is no change of the classifier.
        """
        now = dict(net.named_parameters())
        if not self._previous:
            self._previous = {name: torch.empty_like(parameter) for name, parameter in now.items()}
            self._remember(now)
            return images.new_zeros(())
        modes = [module for module in net.student.modules() if module.training]
        net.student.eval()
        logits = net(images, features)
        with torch.no_grad():
            old_logits = functional_call(net, self._previous, (images, features))
        self._remember(now)
        for module in modes:
            module.training = True
        return policy_kl_loss(logits, old_logits).mean()

    @torch.no_grad()
    def _remember(self, parameters: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_([self._previous[name] for name in parameters], list(parameters.values()))

    def after_update(self, net: KnowledgeFlow, progress: Progress) -> None:
        """Reproduction variant: p back on the simplex."""
        net.mixing.renormalise()

    def export(self, net: KnowledgeFlow) -> nn.Module:
        """The student alone."""
        return net.export()

    def mixes_statistics(self, net: KnowledgeFlow) -> bool:
        """True while the student is linked, because passes with links and without alternate."""
        return not net.independent

    def caveat(self, net: KnowledgeFlow) -> str:
        """That the student is linked, until it is independent."""
        if net.independent:
            return ""
        return (
            "Warning: this student is not independent. It was trained with its teachers' links, and its file holds the "
            "student alone."
        )

    def others(self, net: KnowledgeFlow, final: bool) -> Mapping[str, Predictor]:
        """The student with its links, until it is independent."""
        return {} if net.independent else {"with_links": net}

    def metrics(self, net: KnowledgeFlow) -> dict[str, float]:
        """The weights p of the student and of each teacher, per layer, and the fold's R2."""
        return net.weights() | self._fold_r2

    def state(self) -> dict[str, Tensor]:
        """theta_old, and the fold's R2."""
        return self._previous | {name: torch.tensor(r2, dtype=torch.float64) for name, r2 in self._fold_r2.items()}

    def load_state(self, net: KnowledgeFlow, state: Mapping[str, Tensor]) -> None:
        """Restore theta_old in the memory layout of the parameters, because the layout decides how sums are rounded."""
        own = dict(net.named_parameters())
        self._fold_r2 = {name: float(r2) for name, r2 in state.items() if name.startswith(R2)}
        previous = {name: old for name, old in state.items() if name not in self._fold_r2}
        self._previous = {name: torch.empty_like(own[name]).copy_(old).detach() for name, old in previous.items()}


METHOD = KnowledgeFlowMethod
