"""Progressive nets (Rusu et al. 2016): a trained column with lateral connections from frozen ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.nets.adapters import build_transform
from kfrl.nets.atari.net import PAPER_CONVS, AtariNet
from kfrl.nets.hooks import features_of, layer_shapes
from kfrl.nets.init import HEAD_GAINS, HIDDEN_GAIN, fill_orthogonal
from kfrl.nets.links import links_by_depth

Shape = tuple[int, ...]


class LateralLayer(nn.Module):
    """z_i = W_i h_{i-1} + U_i relu( sum_j V_ij alpha_ij h_{i-1}^(j) ): a layer with laterals from columns j.

    The sum over columns equals the paper's single V on their concatenation. V is a 1x1 convolution between maps (then
    a bilinear resize if they differ in size), else a matrix; U has the shape of W.
    """

    def __init__(
        self,
        own: nn.Conv2d | nn.Linear,
        shape: Shape,
        column_shapes: Sequence[Shape],
        initial_scalar: float,
        gain: float,
    ) -> None:
        """Add laterals to a layer.

        Args:
            own: The layer with W and its bias.
            shape: Shape of the h_{i-1} that `own` reads, before it is flattened.
            column_shapes: Shape of each column's h_{i-1}.
            initial_scalar: alpha at the start.
            gain: Gain of the orthogonal initialisation of U.
        """
        super().__init__()
        self.own = own
        self.scalars = nn.Parameter(torch.full((len(column_shapes),), float(initial_scalar)))
        self.adapters = nn.ModuleList(build_transform("conv1x1", column, shape) for column in column_shapes)
        self.lateral = copy.deepcopy(own)
        fill_orthogonal(self.lateral.weight, gain)
        self.lateral.register_parameter("bias", None)
        self.features: Sequence[Tensor] = ()
        """h_{i-1} of each column in the current forward pass."""

    def forward(self, h: Tensor) -> Tensor:
        """h_{i-1} (B, ...) -> z_i (B, ...)."""
        reduced = torch.stack([v(z, a) for v, z, a in zip(self.adapters, self.features, self.scalars, strict=True)])
        adapted = reduced.sum(0).relu()
        if isinstance(self.own, nn.Linear):
            adapted = adapted.flatten(1)
        z: Tensor = self.own(h) + self.lateral(adapted)
        return z


class ProgressiveNet(AtariNet):
    """An Atari net with laterals from frozen columns into every layer but the first, including the heads.

    The laterals into layer i come from each column's layer at the same relative depth as layer i - 1. Frozen columns
    are sub-modules, because the net needs them to play and must be saved with them; they are not trained.
    """

    def __init__(
        self,
        num_actions: int,
        columns: Mapping[str, nn.Module],
        convs: Sequence[Sequence[int]] = PAPER_CONVS,
        hidden: int = 256,
        frame_stack: int = 4,
        screen_size: int = 84,
        initial_scalar: float = 0.1,
    ) -> None:
        """Build the trained column and its laterals; see `AtariNet` for the other arguments.

        Args:
            num_actions: A.
            columns: Name -> frozen net; not copied.
            convs: Convolutions of the trained column.
            hidden: Units of the trained column's fully connected layer.
            frame_stack: Input channels.
            screen_size: Height and width of the input.
            initial_scalar: alpha at the start; the paper samples 1, 0.1, 0.01.

        Raises:
            UserError: there are no columns, or one has no hidden layers.
        """
        super().__init__(num_actions, convs, hidden, frame_stack, screen_size)
        if not columns:
            raise UserError("A progressive net needs at least one frozen column.")
        example = torch.zeros(1, frame_stack, screen_size, screen_size, dtype=torch.uint8)
        self.arch = {
            **{name: value for name, value in self.arch.items() if name != "head"},
            "family": "progressive",
            "columns": [
                {"name": name, "outputs": column(example)[0].shape[1], "arch": column.arch}
                for name, column in columns.items()
            ],
        }
        self.columns = nn.ModuleList(columns.values()).requires_grad_(False)
        links = links_by_depth(self, columns)
        self.taps = {name: [link.layer for link in links if link.teacher == name] for name in columns}
        """Column -> its layers that the laterals read, one for each hidden layer of the trained column."""
        self._readers: dict[str, int] = {}
        """Layer with laterals -> the index of the hidden layer before it."""
        self._add_laterals(example, initial_scalar)
        self.train(self.training)

    def _add_laterals(self, example: Tensor, initial_scalar: float) -> None:
        depth = len(self.hidden_layers)
        own = list(layer_shapes(self, self.hidden_layers, example).values())
        theirs = self.features(example)
        following = [(name,) for name in self.hidden_layers[1:]] + [self.head_layers]
        for position, names in enumerate(following):
            shape, columns = own[position], [tuple(h.shape[1:]) for h in theirs[position::depth]]
            for name in names:
                layer: Any = self.get_submodule(name)
                gain = HEAD_GAINS.get(name, HIDDEN_GAIN)
                self.add_module(name, LateralLayer(layer, shape, columns, initial_scalar, gain))
                self._readers[name] = position

    @torch.no_grad()
    def features(self, obs: Tensor) -> tuple[Tensor, ...]:
        """The columns' activations that the laterals read. They never change: compute them once per observation.

        Returns:
            h (B, *shape) for each column and each hidden layer of the trained column.
        """
        found: list[Tensor] = []
        for column, layers in zip(self.columns, self.taps.values(), strict=True):
            seen = features_of(column, layers, obs)
            found += [seen[layer].relu() for layer in layers]
        return tuple(found)

    def forward(self, obs: Tensor, features: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Map observations (B, stack, H, W) uint8 to logits (B, A) and values (B,).

        Args:
            obs: Screens.
            features: The result of `features(obs)`; computed here if None.
        """
        if features is None:
            features = self.features(obs)
        self._feed(features)
        try:
            return super().forward(obs)
        finally:
            self._feed(())

    def _feed(self, features: Sequence[Tensor]) -> None:
        for name, position in self._readers.items():
            layer = self.get_submodule(name)
            assert isinstance(layer, LateralLayer)
            layer.features = features[position :: len(self.hidden_layers)]

    def train(self, mode: bool = True) -> ProgressiveNet:
        """Set the mode of the module; the frozen columns stay in evaluation mode."""
        super().train(mode)
        self.columns.eval()
        return self

    @torch.no_grad()
    def scalars(self) -> dict[tuple[str, str], float]:
        """Alpha of each lateral, by (column, layer that reads it)."""
        return {
            (name, layer): alpha
            for layer in self._readers
            for name, alpha in zip(self.taps, self.get_parameter(f"{layer}.scalars").tolist(), strict=True)
        }


def from_arch(num_actions: int, columns: Sequence[Mapping[str, Any]], **fields: Any) -> ProgressiveNet:
    """Build the net that the fields of an `arch` block describe, including the columns.

    Raises:
        TypeError: the fields are not those of an `arch` block.
    """
    return ProgressiveNet(num_actions, dict(_column(**column) for column in columns), **fields)


def _column(name: str, outputs: int, arch: dict[str, Any]) -> tuple[str, nn.Module]:
    return name, build_net(arch, outputs)
