"""Adam whose statistics all workers share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.methods.base import ParameterGroup
from agents.shared_model import SharedModel, clipped_norm


class SharedAdam:
    """Adam on a `SharedModel`; every worker has one, and all of them advance the same statistics."""

    def __init__(
        self, shared: SharedModel, groups: Sequence[ParameterGroup], max_grad_norm: float, eps: float = 1e-8
    ) -> None:
        """Build the optimiser over the shared slices of each group."""
        self.max_grad_norm = max_grad_norm
        self._scales = [group.lr_scale for group in groups]
        sizes = [sum(p.numel() for p in group.parameters) for group in groups]
        self._slices = [nn.Parameter(part) for part in torch.split(shared.parameters, sizes)]
        self._adam = torch.optim.Adam([{"params": [part]} for part in self._slices], eps=eps, fused=True)
        moments = zip(torch.split(shared.exp_avg, sizes), torch.split(shared.exp_avg_sq, sizes), strict=True)
        for index, (exp_avg, exp_avg_sq) in enumerate(moments):
            self._adam.state[self._slices[index]] = {
                "step": shared.adam_steps[index],
                "exp_avg": exp_avg,
                "exp_avg_sq": exp_avg_sq,
            }

    def push(self, grads: Tensor, lr: float) -> float | None:
        """Apply one update.

        Args:
            grads: (N,) gradients; scaled in place when their norm exceeds the maximum.
            lr: Learning rate, before a group's own factor.

        Returns:
            The norm before clipping, or None when it was not finite: the update was then dropped.
        """
        norm = clipped_norm(grads, self.max_grad_norm)
        if norm is None:
            return None
        parts = torch.split(grads, [part.numel() for part in self._slices])
        for part, grad, group, scale in zip(self._slices, parts, self._adam.param_groups, self._scales, strict=True):
            part.grad = grad
            group["lr"] = lr * scale
        self._adam.step()
        return norm
