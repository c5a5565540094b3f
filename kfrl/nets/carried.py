"""Which layers of a new net have weights of another net; found by comparing values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Fate = Literal["loaded", "resized", "fresh", "skipped"]


@dataclass(frozen=True)
class Carried:
    """The origin of the tensors of one layer."""

    layer: str
    """Layer of the new net; of the source if it was skipped."""
    fate: Fate
    source: str = ""
    """The source as `name: layer`."""
    shape: tuple[int, ...] = ()
    """Shape of the layer's largest tensor."""

    def __str__(self) -> str:
        """The layer as a line for logs."""
        size = " x ".join(map(str, self.shape))
        if self.fate == "skipped":
            return f"skipped  {self.source} ({size})"
        return f"{self.fate:<8} {self.layer} ({size})" + (f" from {self.source}" if self.source else "")


def carried(net: nn.Module, sources: Mapping[str, nn.Module]) -> list[Carried]:
    """The origin of each layer of a net that was just built.

    Args:
        net: The new net.
        sources: Name -> net whose weights it may contain.

    Returns:
        The layers of the new net: `loaded`, `resized` (the source's layer of the same name is its first part) or
        `fresh`; then the `skipped` layers of the sources. Empty if no layer comes from a source.
    """
    own = _layers(net)
    theirs = {name: _layers(source) for name, source in sources.items()}
    known = {_digest(tensors): (name, layer) for name, held in theirs.items() for layer, tensors in held.items()}
    found, used = [], set()
    for layer, tensors in own.items():
        shape = _shape(tensors)
        origin = known.get(_digest(tensors))
        resized = None if origin else next(_smaller(layer, tensors, theirs), None)
        fate: Fate = "loaded" if origin else "resized" if resized else "fresh"
        source = origin or resized
        used.add(source)
        found.append(Carried(layer, fate, ": ".join(source) if source else "", shape))
    if all(one.fate == "fresh" for one in found):
        return []
    left = [
        Carried(layer, "skipped", f"{name}: {layer}", _shape(tensors))
        for name, held in theirs.items()
        for layer, tensors in held.items()
        if (name, layer) not in used
    ]
    return found + left


def _layers(net: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Layer -> its tensors, by their names in the layer."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in net.state_dict().items():
        layer, _, own = name.rpartition(".")
        layers.setdefault(layer, {})[own] = tensor.detach().cpu()
    return layers


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _smaller(
    layer: str, tensors: Mapping[str, Tensor], theirs: Mapping[str, Mapping[str, Mapping[str, Tensor]]]
) -> Iterator[tuple[str, str]]:
    """The sources whose layer of the same name is the first part of this layer."""
    for name, held in theirs.items():
        old = held.get(layer, {})
        if old and old.keys() == tensors.keys() and all(_begins(tensors[key], old[key]) for key in old):
            yield name, layer


def _begins(new: Tensor, old: Tensor) -> bool:
    if new.dim() != old.dim() or any(a < b for a, b in zip(new.shape, old.shape, strict=True)):
        return False
    return torch.equal(new[tuple(slice(size) for size in old.shape)], old)


def _shape(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(max(tensors.values(), key=Tensor.numel).shape)
