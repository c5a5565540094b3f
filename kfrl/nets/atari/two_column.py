"""Distral's two-column net: one policy on the features of two bodies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kfrl.nets.atari.net import PAPER_CONVS, AtariNet, Body
from kfrl.nets.init import orthogonal


class BodyColumn(Body):
    """A body as a module: observations (B, stack, H, W) uint8 -> features (B, hidden)."""

    def forward(self, obs: Tensor) -> Tensor:
        """The features."""
        return self.body(obs)


class ColumnNet(nn.Module):
    """Two bodies: the policy head reads both, the value head the second. Logits (B, A), values (B,).

    A policy head on both features equals the sum of a head on each.
    """

    head_layers = AtariNet.head_layers
    head = "actor-critic"

    def __init__(
        self,
        num_actions: int,
        convs: Sequence[Sequence[int]] = PAPER_CONVS,
        hidden: int = 256,
        frame_stack: int = 4,
        screen_size: int = 84,
    ) -> None:
        """Build the net; both bodies have the same shape, see `AtariNet`."""
        super().__init__()
        self.distilled, self.own = (BodyColumn(convs, hidden, frame_stack, screen_size) for _ in range(2))
        self.policy = nn.Linear(2 * hidden, num_actions)
        self.value = nn.Linear(hidden, 1)
        orthogonal(self)
        self.arch = {"family": "columns", **self.own.arch}
        self.hidden_layers = tuple(f"own.{layer}" for layer in self.own.hidden_layers)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations (B, stack, H, W) uint8 to logits (B, A) and values (B,)."""
        own = self.own(obs)
        return self.policy(torch.cat([self.distilled(obs), own], dim=1)), self.value(own).squeeze(1)
