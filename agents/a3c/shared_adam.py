"""One model in shared memory, and Adam whose statistics all workers share.

Parameters, gradients and statistics are slices of flat tensors: taking the shared parameters is one copy, the gradient
norm is one reduction, and Adam is one fused kernel. A worker hands its gradients over explicitly on every update, so
nothing depends on what `zero_grad` does to `.grad`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.methods.base import ParameterGroup


def _view(flat: Tensor, shape: torch.Size) -> Tensor:
    """A slice of a flat tensor as a parameter; four dimensions are laid out channels_last."""
    if len(shape) != 4:
        return flat.view(shape)
    out, channels, height, width = shape
    return flat.view(out, height, width, channels).permute(0, 3, 1, 2)


def _slices(groups: Sequence[ParameterGroup], flat: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
    start = 0
    for group in groups:
        for parameter in group.parameters:
            end = start + parameter.numel()
            yield parameter, _view(flat[start:end], parameter.shape)
            start = end


def flatten(groups: Sequence[ParameterGroup]) -> Tensor:
    """The current values of all parameters in one new flat tensor."""
    flat = torch.empty(sum(p.numel() for group in groups for p in group.parameters))
    for parameter, view in _slices(groups, flat):
        view.copy_(parameter.detach())
    return flat


def bind(groups: Sequence[ParameterGroup], flat: Tensor, grads: Tensor | None = None) -> None:
    """Make `flat` (and `grads`) the storage of the parameters (and of their gradients)."""
    for parameter, view in _slices(groups, flat):
        parameter.data = view
    if grads is not None:
        for parameter, view in _slices(groups, grads):
            parameter.grad = view


def named_views(net: nn.Module, groups: Sequence[ParameterGroup], flat: Tensor) -> dict[str, Tensor]:
    """Views of a flat tensor under the parameters' names, e.g. of Adam's statistics for a checkpoint."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(parameter)]: view for parameter, view in _slices(groups, flat)}


@dataclass(frozen=True)
class SharedModel:
    """What all processes of a run share, without a lock: a process that is killed can block no other."""

    parameters: Tensor
    """(N,) the model."""
    exp_avg: Tensor
    """(N,) Adam's first moment."""
    exp_avg_sq: Tensor
    """(N,) Adam's second moment."""
    adam_steps: Tensor
    """(groups,) Adam's step counts."""
    steps: Tensor
    """(1 + workers,) int64: agent steps of the run before it was resumed, then of each worker."""
    updates: Tensor
    """(1 + workers,) int64: updates, likewise."""
    dropped: Tensor
    """(1 + workers,) int64: updates dropped for a non-finite gradient, likewise."""
    stop: Tensor
    """(1,) int64: not 0 when workers should finish."""

    @classmethod
    def create(cls, groups: Sequence[ParameterGroup], num_workers: int) -> SharedModel:
        """Allocate shared memory and copy the parameters into it."""
        flat = flatten(groups)
        counters = (torch.zeros(1 + num_workers, dtype=torch.int64) for _ in range(3))
        tensors = (
            flat,
            torch.zeros_like(flat),
            torch.zeros_like(flat),
            torch.zeros(len(groups)),
            *counters,
            torch.zeros(1, dtype=torch.int64),
        )
        for tensor in tensors:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        return cls(*tensors)

    @property
    def global_step(self) -> int:
        """Agent steps of all workers, earlier sessions of the run included."""
        return int(self.steps.sum())


class SharedAdam:
    """Adam on a `SharedModel`; every worker has one, and all of them advance the same statistics."""

    def __init__(self, shared: SharedModel, groups: Sequence[ParameterGroup], max_grad_norm: float):
        """Build the optimiser over the shared slices of each group."""
        self.max_grad_norm = max_grad_norm
        self._scales = [group.lr_scale for group in groups]
        sizes = [sum(p.numel() for p in group.parameters) for group in groups]
        self._slices = [nn.Parameter(part) for part in torch.split(shared.parameters, sizes)]
        self._adam = torch.optim.Adam([{"params": [part]} for part in self._slices], fused=True)
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
        norm = float(grads.norm())
        if not norm < float("inf"):
            return None
        if norm > self.max_grad_norm:
            grads.mul_(self.max_grad_norm / norm)
        parts = torch.split(grads, [part.numel() for part in self._slices])
        for part, grad, group, scale in zip(self._slices, parts, self._adam.param_groups, self._scales, strict=True):
            part.grad = grad
            group["lr"] = lr * scale
        self._adam.step()
        return norm
