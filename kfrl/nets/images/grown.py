"""Trained nets with new units near the output (Wang, Ramanan and Hebert 2017, "Growing a Brain")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.nets import build_net
from kfrl.nets.images.classifier import Classifier
from kfrl.nets.linear import Linear


class Beside(nn.Module):
    """A trained fully connected layer and new units beside it, with the same input."""

    def __init__(self, old: nn.Linear, units: int) -> None:
        """Add `units` to `old`."""
        super().__init__()
        self.old, self.new = old, Linear(old.in_features, units)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) -> (B, old + new)."""
        return torch.cat([self.old(x), self.new(x)], 1)


class Above(nn.Module):
    """Features and new units that read them, for nets whose last hidden layer is a convolution."""

    def __init__(self, features: int, units: int) -> None:
        """Add `units`."""
        super().__init__()
        self.new = Linear(features, units)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) -> (B, F + units)."""
        return torch.cat([x, F.relu(self.new(x))], 1)


class ScaledNorm(nn.Module):
    """y_i = gamma_i h_i / |h|_2 over the units of a layer, sample by sample (section 3.3 of the paper)."""

    def __init__(self, units: int, scale: float) -> None:
        """Start with gamma = `scale` for all units, because with norm 1 the layers above learn slowly."""
        super().__init__()
        self.gamma = nn.Parameter(torch.full((units,), scale))

    def forward(self, h: Tensor) -> Tensor:
        """(B, units) -> (B, units)."""
        return self.gamma * F.normalize(h, dim=1)


class GrownNet(Classifier):
    """A net with more units in its last hidden layer (`width`), a new layer above it (`depth`), or both.

    Old and new units are normalised separately, so that they learn at the same pace. In a net without a fully connected
    hidden layer, the new units read the pooled features.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: Sequence[int],
        base: dict[str, Any],
        width: int = 0,
        depth: int = 0,
        scale: float | None = 10.0,
    ) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W), the same as in `base`.
            base: The architecture block of the trained net.
            width: Number S of new units beside the last hidden layer.
            depth: Units of the new layer above.
            scale: gamma at the start; None: units are not normalised.

        Raises:
            ValueError: there are no new units.
        """
        super().__init__("grown", num_classes, input_shape, base=dict(base), width=width, depth=depth, scale=scale)
        if width < 0 or depth < 0 or not width + depth:
            raise ValueError(f"a net grows by units, got {width} beside its last layer and {depth} above it")
        self.body = cast(Classifier, build_net(base, 1))
        features = self.body.head.in_features
        self.hidden_layers = tuple(f"body.{name}" for name in self.body.hidden_layers)
        self.maxout_pieces = {f"body.{name}": pieces for name, pieces in self.body.maxout_pieces.items()}
        self.body.add_module("head", nn.Identity())
        self._top = self._widen(features, width) if width else None
        sizes = [features, width] if width else [features]
        self._sizes = sizes
        self.norms = nn.ModuleList(ScaledNorm(units, scale) for units in sizes) if scale is not None else None
        self.deeper = Linear(sum(sizes), depth) if depth else None
        if depth:
            self.hidden_layers = (*self.hidden_layers, "deeper")
        self.head = nn.Linear(depth or sum(sizes), num_classes)

    def _widen(self, features: int, width: int) -> str:
        """Add `width` new units to the body; returns the layer of the body that holds them."""
        name = self.body.hidden_layers[-1]
        top = self.body.get_submodule(name)
        beside = isinstance(top, nn.Linear) and top.out_features == features
        wider = Beside(cast(nn.Linear, top), width) if beside else Above(features, width)
        place = name if beside else "head"
        parent, _, own = place.rpartition(".")
        self.body.get_submodule(parent).add_module(own, wider)
        return place

    def old_parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters of the trained net."""
        new = f"{self._top}.new."
        return tuple(parameter for name, parameter in self.body.named_parameters() if not name.startswith(new))

    @torch.no_grad()
    def take(self, base: Classifier) -> None:
        """Copy every layer of the trained net except its head."""
        name = base.hidden_layers[-1]
        moved = name == self._top
        theirs = {
            key.replace(f"{name}.", f"{name}.old.", 1) if moved and key.startswith(f"{name}.") else key: tensor
            for key, tensor in base.state_dict().items()
            if key.rpartition(".")[0] not in base.head_layers
        }
        self.body.load_state_dict({**self.body.state_dict(), **theirs})

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h: Tensor = self.body(images)
        if self.norms is not None:
            blocks = h.split(self._sizes, 1)
            h = torch.cat([norm(block) for norm, block in zip(self.norms, blocks, strict=True)], 1)
        if self.deeper is not None:
            h = F.relu(self.deeper(h))
        logits: Tensor = self.head(h)
        return logits
