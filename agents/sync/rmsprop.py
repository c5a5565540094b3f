"""RMSProp as TensorFlow has it, which the published A2C was tuned with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.methods.base import ParameterGroup
from agents.shared_model import SharedModel, clipped_norm


class RMSpropTF:
    """s = alpha s + (1 - alpha) g^2, theta -= lr g / sqrt(s + eps), from s = 1.

    `torch.optim.RMSprop` starts from s = 0 and adds eps outside the root, which makes the first steps about ten times
    as large; Stable-Baselines3 had to write the same to match the published scores.
    """

    def __init__(
        self,
        shared: SharedModel,
        groups: Sequence[ParameterGroup],
        max_grad_norm: float,
        alpha: float = 0.99,
        eps: float = 1e-5,
    ) -> None:
        """Train the parameters of `shared`; its `exp_avg_sq` is s."""
        self._shared, self._max_grad_norm, self._alpha, self._eps = shared, max_grad_norm, alpha, eps
        scales = [
            torch.full((sum(p.numel() for p in group.parameters),), group.lr_scale, device=shared.parameters.device)
            for group in groups
        ]
        self._scale = torch.cat(scales) if any(group.lr_scale != 1.0 for group in groups) else 1.0
        if not shared.adam_steps.any():
            shared.exp_avg_sq.fill_(1.0)

    def push(self, grads: Tensor, lr: float) -> float | None:
        """Apply one update; see `Optimiser`."""
        norm = clipped_norm(grads, self._max_grad_norm)
        if norm is None:
            return None
        squares = self._shared.exp_avg_sq
        squares.mul_(self._alpha).addcmul_(grads, grads, value=1.0 - self._alpha)
        self._shared.parameters.addcdiv_(grads * self._scale, (squares + self._eps).sqrt_(), value=-lr)
        self._shared.adam_steps.add_(1)
        return norm
