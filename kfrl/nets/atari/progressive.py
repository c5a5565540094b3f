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
    """z_i = W_i h_{i-1} + U_i relu( sum_j V_ij alpha_ij h_{i-1}^(j) ): a layer, and what columns j feed into it.

    The sum over columns is the paper's one V on their concatenation, written block by block. V is a 1x1 convolution
    between maps (then a bilinear resize where they differ in size) and a matrix otherwise, U is like W.
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
            own: W and its bias.
            shape: Of the h_{i-1} that `own` reads, maps where it flattens them.
            column_shapes: Of each column's h_{i-1}.
            initial_scalar: alpha at the start.
            gain: Of the orthogonal U at the start.
        """
        super().__init__()
        self.own = own
        self.scalars = nn.Parameter(torch.full((len(column_shapes),), float(initial_scalar)))
        self.adapters = nn.ModuleList(build_transform("conv1x1", column, shape) for column in column_shapes)
        self.lateral = copy.deepcopy(own)
        fill_orthogonal(self.lateral.weight, gain)
        self.lateral.register_parameter("bias", None)
        self.features: Sequence[Tensor] = ()
        """h_{i-1} of each column, for the forward pass under way."""

    def forward(self, h: Tensor) -> Tensor:
        """h_{i-1} (B, ...) -> z_i (B, ...)."""
        reduced = torch.stack([v(z, a) for v, z, a in zip(self.adapters, self.features, self.scalars, strict=True)])
        adapted = reduced.sum(0).relu()
        if isinstance(self.own, nn.Linear):
            adapted = adapted.flatten(1)
        z: Tensor = self.own(h) + self.lateral(adapted)
        return z


class ProgressiveNet(AtariNet):
    """An Atari net whose layers but the first, its heads among them, also read the frozen columns' layers before them.

    The laterals into layer i come from every column's layer at the same relative depth as layer i - 1. Frozen columns
    are sub-modules, so that they are saved with the net, which cannot play without them; they do not train.
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
            columns: Name -> frozen net, kept as it is, not copied.
            convs: Of the trained column.
            hidden: Likewise.
            frame_stack: Input channels.
            screen_size: Height and width of the input.
            initial_scalar: alpha at the start; the paper samples 1, 0.1, 0.01.

        Raises:
            UserError: no columns, or one without hidden layers.
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
        self._taps = [[link.layer for link in links if link.teacher == name] for name in columns]
        self._readers: dict[str, int] = {}
        """Layer with laterals -> the position of the layer before it among the hidden ones."""
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
        """The columns' activations that laterals read; they never change, so compute them once per observation.

        Returns:
            h (B, *shape) for each column, and in it for each hidden layer of the trained one.
        """
        found: list[Tensor] = []
        for column, layers in zip(self.columns, self._taps, strict=True):
            seen = features_of(column, layers, obs)
            found += [seen[layer].relu() for layer in layers]
        return tuple(found)

    def forward(self, obs: Tensor, features: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Map observations (B, stack, H, W) uint8 to logits (B, A) and values (B,).

        Args:
            obs: Screens.
            features: As `features(obs)` gave them; computed here if not given.
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
        """Like any module's, but for the frozen columns, which stay in evaluation mode."""
        super().train(mode)
        self.columns.eval()
        return self

    @torch.no_grad()
    def scalars(self) -> dict[tuple[str, str], float]:
        """Alpha by (column, layer that the lateral goes into)."""
        names = [column["name"] for column in self.arch["columns"]]
        return {
            (name, layer): alpha
            for layer in self._readers
            for name, alpha in zip(names, self.get_parameter(f"{layer}.scalars").tolist(), strict=True)
        }


def from_arch(num_actions: int, columns: Sequence[Mapping[str, Any]], **fields: Any) -> ProgressiveNet:
    """Build the net that the fields of an `arch` block describe, columns included.

    Raises:
        TypeError: fields that are not those of an `arch` block.
    """
    return ProgressiveNet(num_actions, dict(_column(**column) for column in columns), **fields)


def _column(name: str, outputs: int, arch: dict[str, Any]) -> tuple[str, nn.Module]:
    return name, build_net(arch, outputs)
