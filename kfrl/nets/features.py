"""What layers of an unedited net say, read through forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

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


def _keep(seen: Features, layer: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        # A copy, because an activation that works in place would turn z into h.
        seen[layer] = output.clone()

    return hook
