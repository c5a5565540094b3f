"""Adam and RMSProp on parameters and statistics that all workers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from agents.engines.shared import SharedModel, clipped_norm
from kfrl.optim.groups import ParameterGroup

BETAS = (0.9, 0.999)


class SharedOptimiser(ABC):
    """An optimiser on a `SharedModel`. Every worker has one object, and all of them update the same statistics."""

    def __init__(self, shared: SharedModel, groups: Sequence[ParameterGroup], max_grad_norm: float) -> None:
        """Train the parameters of `shared`, with the learning rate of each group."""
        self._groups, self._max_grad_norm = groups, max_grad_norm
        self._sizes = [sum(p.numel() for p in group.parameters) for group in groups]
        self._parameters, self._means, self._squares = (
            torch.split(tensor, self._sizes) for tensor in (shared.parameters, shared.exp_avg, shared.exp_avg_sq)
        )
        self._steps = shared.adam_steps

    @torch.no_grad()
    def push(self, grads: Tensor, lr: float) -> float | None:
        """Apply one update.

        Args:
            grads: (N,) gradients; clipped in place.
            lr: Learning rate, before the factor of a group.

        Returns:
            The norm before clipping, or None if it was not finite and the update was dropped.
        """
        norm = clipped_norm(grads, self._max_grad_norm)
        if norm is None:
            return None
        for index, (group, grad) in enumerate(zip(self._groups, torch.split(grads, self._sizes), strict=True)):
            if group.lazy and not grad.any():
                continue
            if group.sgd is not None:
                self._parameters[index].sub_(grad, alpha=group.sgd)
                continue
            self._steps[index] += 1
            self._step(index, grad, lr * group.lr_scale)
        return norm

    @abstractmethod
    def _step(self, index: int, grad: Tensor, lr: float) -> None:
        """Update the parameters and the statistics of a group with its gradient (n,)."""


class SharedAdam(SharedOptimiser):
    """Adam.

    It calls the kernel of `torch.optim.Adam(fused=True)` directly, because the class keeps its own step counts, takes
    longer than a rollout's forward pass for a small net, and makes each process import 60 MB of compiler.
    """

    def __init__(
        self, shared: SharedModel, groups: Sequence[ParameterGroup], max_grad_norm: float, eps: float = 1e-8
    ) -> None:
        """Train the parameters of `shared`, with the learning rate of each group."""
        super().__init__(shared, groups, max_grad_norm)
        self._eps = eps

    def _step(self, index: int, grad: Tensor, lr: float) -> None:
        torch._fused_adam_(
            [self._parameters[index]],
            [grad],
            [self._means[index]],
            [self._squares[index]],
            [],
            [self._steps[index]],
            lr=lr,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
        )


class RMSpropTF(SharedOptimiser):
    """s = alpha s + (1 - alpha) g^2, theta -= lr g / sqrt(s + eps), from s = 1: TensorFlow's form, epsilon in the root.

    A2C was tuned for this form. `torch.optim.RMSprop` starts at s = 0 and adds eps outside the root, so its first steps
    are about ten times as large; Stable-Baselines3 implements the same form to match the published scores.
    """

    def __init__(
        self,
        shared: SharedModel,
        groups: Sequence[ParameterGroup],
        max_grad_norm: float,
        alpha: float = 0.99,
        eps: float = 1e-5,
        start: float = 1.0,
    ) -> None:
        """Train the parameters of `shared`; its `exp_avg_sq` holds s, which starts at `start`."""
        super().__init__(shared, groups, max_grad_norm)
        self._alpha, self._eps = alpha, eps
        if not self._steps.any():
            shared.exp_avg_sq.fill_(start)

    @classmethod
    def of_a3c(cls, shared: SharedModel, groups: Sequence[ParameterGroup], max_grad_norm: float) -> RMSpropTF:
        """The form of A3C according to its authors: s shared by all workers, from 0; epsilon 0.1, decay 0.99."""
        return cls(shared, groups, max_grad_norm, eps=0.1, start=0.0)

    def _step(self, index: int, grad: Tensor, lr: float) -> None:
        squares = self._squares[index].mul_(self._alpha).addcmul_(grad, grad, value=1.0 - self._alpha)
        self._parameters[index].addcdiv_(grad, (squares + self._eps).sqrt_(), value=-lr)
