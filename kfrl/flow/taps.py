"""Reading the inside of a net without editing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


def layer_outputs(net: nn.Module, layers: Iterable[str], *inputs: Any) -> dict[str, Tensor]:
    """Call `net` and return what its sub-modules `layers` gave: name -> output, pre-activations where they are layers.

    A copy of each, because an activation that works in place would turn z into h.
    """
    seen: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            seen[layer] = output.clone()

        return hook

    handles = [net.get_submodule(layer).register_forward_hook(keep(layer)) for layer in dict.fromkeys(layers)]
    try:
        net(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen
