"""Adam with statistics that all workers share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.engines.shared import SharedModel, clipped_norm
from kfrl.optim.groups import ParameterGroup

BETAS = (0.9, 0.999)


class SharedAdam:
    """Adam on a `SharedModel`. Every worker has one object, and all of them update the same statistics.

    It calls the kernel of `torch.optim.Adam(fused=True)` directly, because the class keeps its own step counts, takes
    longer than a rollout's forward pass for a small net, and makes each process import 60 MB of compiler.
    """

    def __init__(
        self, shared: SharedModel, groups: Sequence[ParameterGroup], max_grad_norm: float, eps: float = 1e-8
    ) -> None:
        """Train the parameters of `shared`, with the learning rate of each group."""
        self._max_grad_norm, self._eps = max_grad_norm, eps
        self._groups = groups
        self._sizes = [sum(p.numel() for p in group.parameters) for group in groups]
        self._parameters, self._exp_avg, self._exp_avg_sq = (
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
            torch._fused_adam_(
                [self._parameters[index]],
                [grad],
                [self._exp_avg[index]],
                [self._exp_avg_sq[index]],
                [],
                [self._steps[index]],
                lr=lr * group.lr_scale,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=0.0,
                eps=self._eps,
                amsgrad=False,
                maximize=False,
            )
        return norm
