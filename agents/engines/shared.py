"""A model whose parameters and optimiser statistics are flat tensors, in shared memory for several processes.

With flat tensors, fetching the shared parameters is one copy, the gradient norm one reduction, and the optimiser one
fused kernel. A learner passes its gradients explicitly at every update, so the effect of `zero_grad` on `.grad` does
not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kfrl.optim.groups import ParameterGroup


def _view(flat: Tensor, shape: torch.Size) -> Tensor:
    """A slice of a flat tensor as a parameter; with four dimensions in channels_last order."""
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
    """The values of all parameters in one new flat tensor."""
    parameters = [p for group in groups for p in group.parameters]
    flat = torch.empty(sum(p.numel() for p in parameters), device=parameters[0].device)
    for parameter, view in _slices(groups, flat):
        view.copy_(parameter.detach())
    return flat


def bind(groups: Sequence[ParameterGroup], flat: Tensor, grads: Tensor | None = None) -> None:
    """Make `flat` the storage of the parameters, and `grads` that of their gradients."""
    for parameter, view in _slices(groups, flat):
        parameter.data = view
    if grads is not None:
        for parameter, view in _slices(groups, grads):
            parameter.grad = view


def untrained(net: nn.Module, groups: Sequence[ParameterGroup]) -> dict[str, Tensor]:
    """The tensors of a net's `state_dict` that no group trains, by name, without copying."""
    trained = {id(parameter) for group in groups for parameter in group.parameters}
    held = net.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in held.items() if id(tensor) not in trained}


def named_views(net: nn.Module, groups: Sequence[ParameterGroup], flat: Tensor) -> dict[str, Tensor]:
    """Views of a flat tensor by the parameters' names, e.g. of Adam's statistics for a checkpoint."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(parameter)]: view for parameter, view in _slices(groups, flat)}


@dataclass(frozen=True)
class SharedModel:
    """The tensors that all processes of a run share, without a lock, so that a killed process cannot block another."""

    parameters: Tensor
    """(N,) parameters of the model."""
    exp_avg: Tensor
    """(N,) Adam's first moment."""
    exp_avg_sq: Tensor
    """(N,) Adam's second moment."""
    adam_steps: Tensor
    """(groups,) Adam's step counts."""
    steps: Tensor
    """(1 + workers,) int64: agent steps of the phase; entry 0 those of earlier sessions, then those of each worker."""
    other_steps: Tensor
    """(1 + workers,) int64: agent steps that the phase's budget does not count; entries as in `steps`."""
    updates: Tensor
    """(1 + workers,) int64: updates; entries as in `steps`."""
    dropped: Tensor
    """(1 + workers,) int64: updates dropped by the optimiser; entries as in `steps`."""
    stop: Tensor
    """(1,) int64: 1 when the workers should finish."""

    @classmethod
    def create(cls, groups: Sequence[ParameterGroup], num_workers: int) -> SharedModel:
        """Allocate shared memory, or memory on the parameters' device, and copy the parameters into it."""
        flat = flatten(groups)
        counters = (torch.zeros(1 + num_workers, dtype=torch.int64) for _ in range(4))
        tensors = (
            flat,
            torch.zeros_like(flat),
            torch.zeros_like(flat),
            torch.zeros(len(groups), device=flat.device),
            *counters,
            torch.zeros(1, dtype=torch.int64),
        )
        for tensor in tensors:
            tensor.share_memory_()
        return cls(*tensors)

    @property
    def global_step(self) -> int:
        """Agent steps that the phase's budget counts, including earlier sessions of the run."""
        return int(self.steps.sum())


def clipped_norm(grads: Tensor, max_grad_norm: float) -> float | None:
    """Clip the norm of `grads` in place; returns the norm before, or None if it is not finite."""
    norm = float(grads.norm())
    if not norm < float("inf"):
        return None
    if norm > max_grad_norm:
        grads.mul_(max_grad_norm / norm)
    return norm
