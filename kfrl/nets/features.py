"""What layers of an unedited net say, read through forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Features = dict[str, Tensor]
"""Layer -> its output (B, ...)."""


def with_features(net: nn.Module, layers: Iterable[str], inputs: Tensor) -> tuple[Any, Features]:
    """Run `net` on `inputs`; its output, and those of the sub-modules `layers`."""
    seen: Features = {}
    handles = [net.get_submodule(layer).register_forward_hook(_keep(seen, layer)) for layer in dict.fromkeys(layers)]
    try:
        return net(inputs), seen
    finally:
        for handle in handles:
            handle.remove()


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


def _keep(seen: Features, layer: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        # A copy, because an activation that works in place would turn z into h.
        seen[layer] = output.clone()

    return hook
