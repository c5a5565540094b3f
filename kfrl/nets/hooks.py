"""Features of a net's layers, read with forward hooks; the net is not edited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kfrl.errors import UserError

Features = dict[str, Tensor]
"""Layer -> its output (B, ...); the first output if a pass uses the layer several times."""


RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


class _Enough(BaseException):
    """Ends a forward pass. It is not an `Exception`, so that an `except` in the net does not catch it."""


def with_features(net: nn.Module, layers: Iterable[str], inputs: Tensor) -> tuple[Any, Features]:
    """Run `net` on `inputs`; returns its output and the outputs of the sub-modules `layers`.

    Raises:
        UserError: the forward pass does not use one of the layers.
    """
    seen: Features = {}
    wanted = tuple(dict.fromkeys(layers))
    with _listening(net, wanted, lambda layer, z: seen.setdefault(layer, z.clone())):
        output = net(inputs)
    _check_all_used(wanted, seen)
    return output, seen


def features_of(net: nn.Module, layers: Iterable[str], inputs: Tensor, *, copied: bool = True) -> Features:
    """The outputs of the sub-modules `layers` of `net` on `inputs`; later layers are not computed.

    The outputs need not be copied if `net` does not overwrite them (`overwrites`).

    Raises:
        UserError: the forward pass does not use one of the layers.
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
        # The net itself may call `features_of` on another net.
        if raised is not enough:
            raise
    _check_all_used(wanted, seen)
    return seen


class _ChangedRelus(TorchFunctionMode):
    """Changes what a ReLU gives for a layer's output; the output itself stays as it is."""

    def __init__(self, change: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self.outputs: Features = {}
        self.changed: set[str] = set()
        self._change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RELUS:
            for layer, z in self.outputs.items():
                if z is args[0]:
                    self.changed.add(layer)
                    return self._change(layer, z.relu())
        return func(*args, **(kwargs or {}))


@contextmanager
def changed_activations(
    net: nn.Module, layers: Sequence[str], change: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Replace the activation h = relu(z) of each of `layers` by `change(layer, h)` for all that reads it in `net`.

    Raises:
        UserError: the output z of a layer did not go into a ReLU.
    """
    mode = _ChangedRelus(change)
    with _listening(net, layers, mode.outputs.__setitem__), mode:
        yield
    for layer in layers:
        if layer not in mode.changed:
            raise UserError(f"The output of layer {layer} goes into no ReLU, so its activation cannot be changed.")


def maxout_pieces(net: nn.Module) -> dict[str, int]:
    """The maxout layers among the net's hidden layers, with their numbers of pieces."""
    found: dict[str, int] = getattr(net, "maxout_pieces", {})
    return found


def activation_of(net: nn.Module, layer: str, z: Tensor) -> Tensor:
    """The activation h of hidden layer `layer` from its output: relu(z), or z itself if it is a maxout layer."""
    return z if layer in maxout_pieces(net) else z.relu()


@torch.no_grad()
def overwrites(net: nn.Module, layers: Iterable[str], inputs: Tensor) -> bool:
    """Whether `net` overwrites the outputs of `layers`, as an in-place activation does.

    Only within one pass: it does not detect a layer that writes into the same memory in every pass.
    """
    outputs: list[tuple[Tensor, int]] = []
    with _listening(net, tuple(dict.fromkeys(layers)), lambda layer, z: outputs.append((z, z._version))):
        net(inputs)
    return any(z._version != version for z, version in outputs)


def unwrapped(net: nn.Module, layer: str) -> str:
    """The name of the module in a `nn.Sequential` of one, e.g. a convolution without a norm; else the layer's name."""
    module = net.get_submodule(layer)
    return f"{layer}.0" if isinstance(module, nn.Sequential) and len(module) == 1 else layer


@torch.no_grad()
def layers_in_use(net: nn.Module, example: Tensor) -> list[str]:
    """The 2d convolutions and fully connected layers of `net`, in the order of the forward pass."""
    named = [(name, module) for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    order: list[str] = []
    with _listening(net, [name for name, _ in named], lambda layer, z: order.append(layer)):
        net(example)
    return list(dict.fromkeys(order))


@torch.no_grad()
def layer_shapes(net: nn.Module, layers: Iterable[str], example: Tensor) -> dict[str, tuple[int, ...]]:
    """Layer -> the shape of its output without the batch dimension, by a dry run that does not change the net."""
    features = undisturbed(net, layers, example)
    return {layer: tuple(output.shape[1:]) for layer, output in features.items()}


def parameters_before(net: nn.Module, layers: Iterable[str], example: Tensor) -> tuple[nn.Parameter, ...]:
    """The parameters on which the outputs of `layers` depend, including those of the layers."""
    features = undisturbed(net, layers, example)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    total = torch.stack([output.sum() for output in features.values()]).sum()
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(total, parameters, allow_unused=True)
    return tuple(p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None)


def undisturbed(net: nn.Module, layers: Iterable[str], example: Tensor) -> Features:
    """The outputs of `layers` on `example` in evaluation mode; the net is not changed."""
    # In training mode the example would change the statistics of batch norm.
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        return with_features(net, layers, example)[1]
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _listening(net: nn.Module, layers: Sequence[str], callback: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Call `callback(layer, output)` at each forward pass of one of `layers`."""

    def hook(layer: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def call(module: nn.Module, inputs: Any, output: Tensor) -> None:
            callback(layer, output)

        return call

    handles = [net.get_submodule(layer).register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_all_used(layers: Sequence[str], seen: Features) -> None:
    unused = [layer for layer in layers if layer not in seen]
    if unused:
        raise UserError(
            f"Layer {unused[0]} gives no output: the net has it and does not use it in a forward pass. "
            "Link a layer that is used."
        )
