"""RMSProp with epsilon inside the root, as in TensorFlow (for which A2C was tuned) and in the A3C paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.engines.shared import SharedModel, clipped_norm
from kfrl.optim.groups import ParameterGroup


class RMSpropTF:
    """s = alpha s + (1 - alpha) g^2, theta -= lr g / sqrt(s + eps), from s = 1.

    `torch.optim.RMSprop` starts at s = 0 and adds eps outside the root, so its first steps are about ten times as
    large; Stable-Baselines3 implements the same form to match the published scores.
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
        self._groups, self._max_grad_norm, self._alpha, self._eps = groups, max_grad_norm, alpha, eps
        self._sizes = [sum(p.numel() for p in group.parameters) for group in groups]
        self._parameters, self._squares = (
            torch.split(tensor, self._sizes) for tensor in (shared.parameters, shared.exp_avg_sq)
        )
        self._steps = shared.adam_steps
        if not self._steps.any():
            shared.exp_avg_sq.fill_(start)

    @classmethod
    def of_a3c(cls, shared: SharedModel, groups: Sequence[ParameterGroup], max_grad_norm: float) -> RMSpropTF:
        """The form of A3C according to its authors: s shared by all workers, from 0; epsilon 0.1, decay 0.99."""
        return cls(shared, groups, max_grad_norm, eps=0.1, start=0.0)

    def push(self, grads: Tensor, lr: float) -> float | None:
        """Apply one update; see `Optimiser`."""
        norm = clipped_norm(grads, self._max_grad_norm)
        if norm is None:
            return None
        for index, (group, grad) in enumerate(zip(self._groups, torch.split(grads, self._sizes), strict=True)):
            if group.lazy and not grad.any():
                continue
            if group.sgd is not None:
                self._parameters[index].sub_(grad, alpha=group.sgd)
                continue
            squares = self._squares[index].mul_(self._alpha).addcmul_(grad, grad, value=1.0 - self._alpha)
            self._parameters[index].addcdiv_(grad, (squares + self._eps).sqrt_(), value=-lr * group.lr_scale)
            self._steps[index] += 1
        return norm
