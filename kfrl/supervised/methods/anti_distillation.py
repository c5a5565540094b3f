"""Anti-Distillation (Petrushina et al. 2022): a trained net is grown wider and trained further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from kfrl.config import Count, Fraction, NonNegative, Positive
from kfrl.errors import UserError
from kfrl.losses.curvature import hessian_norm
from kfrl.nets.images.classifier import Classifier
from kfrl.nets.images.widen import embed, grow
from kfrl.nets.memory_format import channels_last
from kfrl.optim.groups import ParameterGroup
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch, Loader, Normalisation
from kfrl.supervised.data.corrupt import draw_noise
from kfrl.supervised.methods.base import Method, Progress, Stage, Task
from kfrl.supervised.old_data import old_images
from kfrl.training.ranks import ranks


@dataclass(frozen=True)
class Settings:
    """Anti-distillation: a trained net grown wider, then fitted to its old task by phi if it is to be."""

    extension: Literal["zero", "uniform"] = "zero"
    """Initial values of the new weights: zero, or uniform in [0, theta]."""
    theta: Positive = 0.01
    """uniform: the upper bound of U[0, theta]."""
    phi_epochs: Annotated[int, Ge(0)] = 0
    """Epochs in which the grown net minimises phi's loss, the sum of the four terms below, before it learns the new
    images; each has as many updates as one of --epochs, and comes on top of them. 0: none."""
    phi_lr: Positive = 1.0
    """Learning rate of phi, as a multiple of --lr."""
    old_weight: NonNegative = 0.0
    """lambda_1, of the cross-entropy on the teacher's images; 0: off, as of the other three."""
    teacher_weight: NonNegative = 0.0
    """lambda_2, of || u - w[u] ||^2, how far the teacher's weights have moved. The paper's is above 0."""
    noise_weight: NonNegative = 0.0
    """lambda_3, of the cross-entropy on the teacher's images with noise in place of some pixels."""
    noise_share: Fraction = 0.2
    """delta, the share of those pixels."""
    hessian_weight: NonNegative = 0.0
    """lambda_4, of || H ||^2, H the Hessian of the cross-entropy on the teacher's images."""
    hessian_steps: Annotated[int, Ge(0)] = 0
    """Which norm of H: 0, Frobenius, by Hutchinson's estimator; more, the largest eigenvalue, by so many steps of power
    iteration."""
    old_data: str = ""
    """The teacher's images: a data set or a folder. Default: the teacher's data set."""
    old_images: Count | None = None
    """So many of them only, those that a teacher with this --train-images learned. Default: all."""


class AntiDistillation(Method[Classifier]):
    """The student starts as its teacher, grown; phi fits it to the old task; then it learns from the labels alone.

    phi = argmin lambda_1 L_f(w, D_1*) + lambda_2 || u - w[u] ||^2 + lambda_3 L_3(w, D_1) + lambda_4 || H ||^2, where
    L_f is the cross-entropy, D_1* the teacher's images as images of the student (`embed`), L_3 the cross-entropy on
    them with noise, and H the Hessian of L_f(w, D_1*) by w.
    """

    takes_teachers = "one"
    Settings = Settings

    def __init__(self, config: SupervisedConfig) -> None:
        """Keep the settings."""
        super().__init__(config)
        self._anchor: dict[str, tuple[Tensor, Tensor]] = {}
        self._old: Loader | None = None

    def build(self, task: Task, teachers: Sequence[Teacher]) -> Classifier:
        """A net of the size of --net with all of the teacher's weights, the head's too (section 4: w[u] = u).

        Raises:
            UserError: a teacher that does not fit into --net, phi without a term or without an epoch, or a teacher
                whose images are needed and cannot be had.
        """
        self._check_phi()
        student = super().build(task, teachers)
        (teacher,) = teachers
        carried = grow(cast(Classifier, teacher.net), student, self.own.extension, self.own.theta)
        if self.own.teacher_weight:
            device = torch.device(self.config.device)
            grown = {name: student.get_parameter(name).detach().clone().to(device) for name in carried}
            self._anchor = {name: (mask.to(device), grown[name]) for name, mask in carried.items()}
        if self.own.old_weight or self.own.noise_weight or self.own.hessian_weight:
            self._old = self._old_task(teacher, channels_last(student))
            embed(torch.empty(1, *teacher.card.input_shape), task.shape)
        return student

    def _check_phi(self) -> None:
        own = self.own
        weights = {
            "--old-weight": own.old_weight,
            "--teacher-weight": own.teacher_weight,
            "--noise-weight": own.noise_weight,
            "--hessian-weight": own.hessian_weight,
        }
        given = " ".join(f"{flag} {weight:g}" for flag, weight in weights.items() if weight)
        if given and not own.phi_epochs:
            raise UserError(
                f"{given} is for phi, and --phi-epochs is 0, so it would do nothing. Give --phi-epochs 1 or more, or "
                "leave the weight out."
            )
        if own.phi_epochs and not given:
            raise UserError(
                f"--phi-epochs {own.phi_epochs} has nothing to minimise: all of phi's weights are 0. Give one or more "
                f"of {', '.join(weights)}; or leave --phi-epochs out."
            )

    def _old_task(self, teacher: Teacher, maps: bool) -> Loader:
        own, card = self.own, teacher.card
        _, height, width = card.input_shape
        leave_out = "leave --old-weight, --noise-weight and --hessian-weight out, which need them"
        size = height if height == width else None
        images = old_images(own.old_data, card, self.config, size, leave_out, own.old_images)[0]
        if images.shape != card.input_shape:
            raise UserError(
                f"The images of {own.old_data or card.data} are of {images.shape} (channels, height, width), and "
                f"teacher {teacher.name!r} has learned images of {card.input_shape}. Give those: --old-data FOLDER."
            )
        device = torch.device(self.config.device)
        normalisation = Normalisation(card.mean, card.std)
        return Loader(images.to(device), self.config.batch_size, normalisation, maps, ranks=ranks())

    def stages(self, net: Classifier) -> Sequence[Stage]:
        """One for phi if it has epochs, without weight decay, which is none of phi's terms; then training."""
        train = super().stages(net)
        if not self.own.phi_epochs:
            return train
        group = ParameterGroup(tuple(net.parameters()), self.own.phi_lr, weight_decay=False)
        return (Stage("phi", self.own.phi_epochs, (group,)), *train)

    def losses(self, net: Classifier, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """In phi its terms, which read no new image; then the cross-entropy."""
        if progress.stage or not self.own.phi_epochs:
            return super().losses(net, batch, progress)
        # Second derivatives need all digits, and cuDNN has none of an LSTM.
        kernels = torch.backends.cudnn.flags(enabled=not self.own.hessian_weight)
        with torch.autocast(batch.images.device.type, enabled=False), kernels:
            return self._phi(net, len(batch.labels))

    def _phi(self, net: Classifier, count: int) -> dict[str, Tensor]:
        own, terms = self.own, {}
        if own.teacher_weight:
            moved = [(net.get_parameter(name) - u).mul(mask) for name, (mask, u) in self._anchor.items()]
            terms["teacher"] = own.teacher_weight * torch.stack([part.square().sum() for part in moved]).sum()
        if self._old is None:
            return terms
        drawn, shape = self._old.random(count), net.input_shape
        if own.old_weight or own.hessian_weight:
            loss = F.cross_entropy(net(embed(drawn.images, shape)), drawn.labels)
            if own.old_weight:
                terms["old"] = own.old_weight * loss
            if own.hessian_weight:
                norm = hessian_norm(loss, tuple(net.parameters()), own.hessian_steps)
                terms["hessian"] = own.hessian_weight * norm
        if own.noise_weight:
            noisy = _with_noise(drawn.images, own.noise_share, self._old.normalise)
            terms["noise"] = own.noise_weight * F.cross_entropy(net(embed(noisy, shape)), drawn.labels)
        return terms


def _with_noise(images: Tensor, share: float, normalise: Normalisation) -> Tensor:
    """A neighbour x' in U_delta(x) of each image x: `share` of its pixels replaced by noise, all of it normalised."""
    hit, noise = draw_noise(tuple(images.shape), share)
    return torch.where(hit.to(images.device), normalise(noise.to(images.device)), images)


METHOD = AntiDistillation
