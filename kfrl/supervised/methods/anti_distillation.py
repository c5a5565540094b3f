"""Anti-Distillation (Petrushina et al. 2022): a trained net is grown wider and trained further."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

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
    """Anti-distillation: a trained net is grown wider, and may be fitted to its old task before it trains (phi)."""

    extension: Literal["zero", "uniform"] = "zero"
    """Initial values of the new weights: zero, or uniform in [0, theta]."""
    theta: Positive = 0.01
    """uniform: the upper bound of U[0, theta]."""
    phi_epochs: Annotated[int, Ge(0)] = 0
    """Epochs in which the grown net minimises the sum of phi's four terms before it trains on the new images. They are
    added to --epochs, and each has as many updates as an epoch of training. 0: no phi."""
    phi_lr: Positive = 1.0
    """The learning rate during phi, as a multiple of --lr."""
    old_weight: NonNegative = 0.0
    """lambda_1, the weight of the cross-entropy on the teacher's training images. 0 turns a term off."""
    teacher_weight: NonNegative = 0.0
    """lambda_2, the weight of || u - w[u] ||^2, the distance to the teacher's weights. In the paper it is above 0."""
    noise_weight: NonNegative = 0.0
    """lambda_3, the weight of the cross-entropy on the teacher's images with noise."""
    noise_share: Fraction = 0.2
    """delta, the share of the pixels of such an image that noise replaces."""
    hessian_weight: NonNegative = 0.0
    """lambda_4, the weight of || H ||^2; H is the Hessian of the cross-entropy on the teacher's images."""
    hessian_steps: Annotated[int, Ge(0)] = 0
    """The norm of H. 0: the Frobenius norm, by Hutchinson's estimator. More: the largest absolute eigenvalue, by this
    number of steps of power iteration."""
    old_data: str = ""
    """The teacher's training images: a data set or a folder. Default: the teacher's data set."""
    old_images: Count | None = None
    """Take this number of them, the same ones as a teacher's run with this --train-images. Default: all."""


class AntiDistillation(Method[Classifier]):
    """The student starts as its grown teacher, phi fits it to the old task, and then it learns from the labels alone.

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
            UserError: a teacher that does not fit into --net, phi without epochs or without a term to minimise, or a
                teacher whose images a term needs and that cannot be loaded.
        """
        self._check_phi()
        student = super().build(task, teachers)
        (teacher,) = teachers
        carried = grow(cast(Classifier, teacher.net), student, self.own.extension, self.own.theta)
        if self.own.teacher_weight:
            device = torch.device(self.config.device)
            grown = {name: student.get_parameter(name).detach().clone().to(device) for name in carried}
            self._anchor = {name: (mask.to(device), grown[name]) for name, mask in carried.items()}
        if self._needs_old_images:
            self._old = self._old_task(teacher, channels_last(student))
            embed(torch.empty(1, *teacher.card.input_shape), task.shape)
        return student

    def _check_phi(self) -> None:
        own = self.own
        weights = {"--old-weight": own.old_weight, "--noise-weight": own.noise_weight}
        weights |= {"--hessian-weight": own.hessian_weight, "--teacher-weight": own.teacher_weight}
        given = " ".join(f"{flag} {weight:g}" for flag, weight in weights.items() if weight)
        if given and not own.phi_epochs:
            raise UserError(
                f"{given} is a weight of phi, and --phi-epochs is 0, so it has no effect. Give --phi-epochs 1 or more, "
                "or leave the weight out."
            )
        if own.phi_epochs and not self._needs_old_images:
            raise UserError(
                f"--phi-epochs {own.phi_epochs} has nothing to minimise: the grown net has the teacher's weights, and "
                "no other term is on. Give --old-weight, --noise-weight or --hessian-weight, or leave --phi-epochs out."
            )

    @property
    def _needs_old_images(self) -> bool:
        return bool(self.own.old_weight or self.own.noise_weight or self.own.hessian_weight)

    def _old_task(self, teacher: Teacher, maps: bool) -> Loader:
        own, card = self.own, teacher.card
        _, height, width = card.input_shape
        leave_out = "leave out --phi-epochs and the weights of phi, which need them"
        size = height if height == width else None
        images = old_images(own.old_data, card, self.config, size, leave_out, own.old_images)[0]
        if images.shape != card.input_shape:
            raise UserError(
                f"The images of {own.old_data or card.data} are of shape {images.shape} (channels, height, width), and "
                f"teacher {teacher.name!r} was trained on images of {card.input_shape}. Give those: --old-data FOLDER."
            )
        device = torch.device(self.config.device)
        normalisation = Normalisation(card.mean, card.std)
        return Loader(images.to(device), self.config.batch_size, normalisation, maps, ranks=ranks())

    def stages(self, net: Classifier) -> Sequence[Stage]:
        """A stage for phi if it has epochs, without weight decay, which is not a term of phi; then training."""
        train = super().stages(net)
        if not self.own.phi_epochs:
            return train
        group = ParameterGroup(tuple(net.parameters()), self.own.phi_lr, weight_decay=False)
        return (Stage("phi", self.own.phi_epochs, (group,)), *train)

    def losses(self, net: Classifier, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """During phi its terms, which read no new image; then the cross-entropy."""
        if progress.stage or not self.own.phi_epochs:
            return super().losses(net, batch, progress)
        # Second derivatives need float32, and cuDNN's LSTM has none.
        kernels: AbstractContextManager[Any] = nullcontext()
        if self.own.hessian_weight:
            kernels = torch.backends.cudnn.flags(enabled=False)
        with torch.autocast(batch.images.device.type, enabled=False), kernels:
            return self._phi(net, len(batch.labels))

    def _phi(self, net: Classifier, count: int) -> dict[str, Tensor]:
        own, terms = self.own, {}
        if own.teacher_weight:
            moved = [(net.get_parameter(name) - u).mul(mask) for name, (mask, u) in self._anchor.items()]
            terms["teacher"] = own.teacher_weight * torch.stack([part.square().sum() for part in moved]).sum()
        assert self._old is not None
        drawn = self._old.random(count)
        if own.old_weight or own.hessian_weight:
            loss = F.cross_entropy(net(embed(drawn.images, net.input_shape)), drawn.labels)
            if own.old_weight:
                terms["old"] = own.old_weight * loss
            if own.hessian_weight:
                norm = hessian_norm(loss, tuple(net.parameters()), own.hessian_steps)
                terms["hessian"] = own.hessian_weight * norm
        if own.noise_weight:
            noisy = _with_noise(drawn.images, own.noise_share, self._old.normalise)
            terms["noise"] = own.noise_weight * F.cross_entropy(net(embed(noisy, net.input_shape)), drawn.labels)
        return terms


def _with_noise(images: Tensor, share: float, normalise: Normalisation) -> Tensor:
    """A neighbour x' in U_delta(x) of each image x: `share` of its pixels replaced by noise, all of it normalised."""
    hit, noise = draw_noise(tuple(images.shape), share)
    return torch.where(hit.to(images.device), normalise(noise.to(images.device)), images)


METHOD = AntiDistillation
