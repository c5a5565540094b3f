"""The outputs of layers of an unedited net, read through forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kfrl.errors import UserError

Features = dict[str, Tensor]
"""Layer -> its output (B, ...), the first one if the net uses it several times."""


class _Enough(BaseException):
    """Ends a forward pass. It is no `Exception`, so that a net's own `except` does not catch it."""


def with_features(net: nn.Module, layers: Iterable[str], inputs: Tensor) -> tuple[Any, Features]:
    """Run `net` on `inputs`; its output, and those of the sub-modules `layers`.

    Raises:
        UserError: the net does not use one of them.
    """
    seen: Features = {}
    wanted = tuple(dict.fromkeys(layers))
    with _listening(net, wanted, lambda layer, z: seen.setdefault(layer, z.clone())):
        output = net(inputs)
    _check_all_spoke(wanted, seen)
    return output, seen


def features_of(net: nn.Module, layers: Iterable[str], inputs: Tensor, *, copied: bool = True) -> Features:
    """The outputs of the sub-modules `layers` of `net` on `inputs`; later layers are not computed.

    They need not be copied if `net` leaves them alone (`overwrites`).

    Raises:
        UserError: the net does not use one of them.
    """
    seen: Features = {}
    wanted = tuple(dict.fromkeys(layers))
    if not wanted:
        return seen
    enough = _Enough()

    def keep(layer: str, z: Tensor) -> None:
        seen.setdefault(layer, z.clone() if copied else z)
        if len(seen) == len(wanted):
            raise enough

    try:
        with _listening(net, wanted, keep):
            net(inputs)
    except _Enough as raised:
        # A net may itself ask others for their features.
        if raised is not enough:
            raise
    _check_all_spoke(wanted, seen)
    return seen


@torch.no_grad()
def overwrites(net: nn.Module, layers: Iterable[str], inputs: Tensor) -> bool:
    """Whether `net` overwrites the outputs of `layers`, as an in-place activation does.

    Within one pass: a layer that writes into the same memory pass after pass is not found out.
    """
    said: list[tuple[Tensor, int]] = []
    with _listening(net, tuple(dict.fromkeys(layers)), lambda layer, z: said.append((z, z._version))):
        net(inputs)
    return any(z._version != version for z, version in said)


@torch.no_grad()
def layers_in_use(net: nn.Module, example: Tensor) -> list[str]:
    """The convolutions (2d) and fully connected layers of `net`, in the order in which a forward pass uses them."""
    named = [(name, module) for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    order: list[str] = []
    with _listening(net, [name for name, _ in named], lambda layer, z: order.append(layer)):
        net(example)
    return list(dict.fromkeys(order))


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
    """The outputs of `layers` on `example` in evaluation mode; the net stays as it was."""
    # In training mode batch norm would take the example into its statistics.
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        return with_features(net, layers, example)[1]
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _listening(net: nn.Module, layers: Sequence[str], heard: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Call `heard` with a layer and its output at each forward pass of one of `layers`."""

    def hook(layer: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def tell(module: nn.Module, inputs: Any, output: Tensor) -> None:
            heard(layer, output)

        return tell

    handles = [net.get_submodule(layer).register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_all_spoke(layers: Sequence[str], seen: Features) -> None:
    silent = [layer for layer in layers if layer not in seen]
    if silent:
        raise UserError(
            f"Layer {silent[0]} gives no output: the net has it and does not use it in a forward pass. "
            "Link a layer that is used."
        )
