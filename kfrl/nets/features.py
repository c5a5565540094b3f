"""What layers of an unedited net say, read through forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

Features = dict[str, Tensor]
"""Layer -> its output (B, ...)."""


def with_features(net: nn.Module, layers: Iterable[str], inputs: Tensor) -> tuple[Any, Features]:
    """Run `net` on `inputs`; its output, and those of the sub-modules `layers`."""
    seen: Features = {}
    with _tapped(net, {layer: _keep(seen, layer) for layer in layers}):
        return net(inputs), seen


def features_of(net: nn.Module, layers: Iterable[str], inputs: Tensor, *, copied: bool = True) -> Features:
    """What the sub-modules `layers` of `net` say of `inputs`; what follows the last of them is not computed.

    They need not be copied if `net` leaves them alone (`overwrites`).
    """
    seen: Features = {}
    wanted = tuple(dict.fromkeys(layers))

    def until_all_have_spoken(layer: str) -> Hook:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[layer] = output.clone() if copied else output
            if len(seen) == len(wanted):
                raise _Enough

        return hook

    with suppress(_Enough), _tapped(net, {layer: until_all_have_spoken(layer) for layer in wanted}):
        net(inputs)
    return seen


@torch.no_grad()
def overwrites(net: nn.Module, layers: Iterable[str], inputs: Tensor) -> bool:
    """Whether `net` changes what `layers` have said, as an activation that works in place does."""
    said: list[tuple[Tensor, int]] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        said.append((output, output._version))

    with _tapped(net, dict.fromkeys(layers, hook)):
        net(inputs)
    return any(output._version != version for output, version in said)


@torch.no_grad()
def layer_shapes(net: nn.Module, layers: Iterable[str], example: Tensor) -> dict[str, tuple[int, ...]]:
    """Layer -> the shape of its output without the batch dimension, by a dry run that leaves the net as it was."""
    features = undisturbed(net, layers, example)
    return {layer: tuple(output.shape[1:]) for layer, output in features.items()}


def parameters_before(net: nn.Module, layers: Iterable[str], example: Tensor) -> tuple[nn.Parameter, ...]:
    """The parameters on which the outputs of `layers` depend, these layers' own among them."""
    features = undisturbed(net, layers, example)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    total = torch.stack([output.sum() for output in features.values()]).sum()
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(total, parameters, allow_unused=True)
    return tuple(p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None)


def undisturbed(net: nn.Module, layers: Iterable[str], example: Tensor) -> Features:
    """What `layers` say of `example` in evaluation mode; leaves the net as it was."""
    # In training mode batch norm would take the example into its statistics.
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        return with_features(net, layers, example)[1]
    finally:
        for module, training in modes:
            module.training = training


Hook = Callable[[nn.Module, Any, Tensor], None]


class _Enough(BaseException):
    """Ends a forward pass; no error, so that no net takes it for one."""


@contextmanager
def _tapped(net: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    handles = [net.get_submodule(layer).register_forward_hook(hook) for layer, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(seen: Features, layer: str) -> Hook:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        # A copy, because an activation that works in place would turn z into h.
        seen[layer] = output.clone()

    return hook
