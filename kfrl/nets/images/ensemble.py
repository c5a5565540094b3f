"""An ensemble of classifiers: the mean of their logits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kfrl.nets import arch_of, build_net
from kfrl.nets.images.classifier import Classifier


class EnsembleNet(Classifier):
    """The mean of the logits of several nets; it has no layer of its own to link."""

    head_layers = ()

    def __init__(self, num_classes: int, input_shape: Sequence[int], members: Sequence[dict[str, Any]]) -> None:
        """Build the members with fresh weights.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W).
            members: The architecture block of each.

        Raises:
            ValueError: fewer than two members.
        """
        super().__init__("ensemble", num_classes, input_shape, members=[dict(member) for member in members])
        if len(members) < 2:
            raise ValueError(f"Expected at least two members of an ensemble, got {len(members)}.")
        self.members = nn.ModuleList(build_net(member, num_classes) for member in members)

    @classmethod
    def of(cls, nets: Sequence[nn.Module]) -> EnsembleNet:
        """The ensemble of copies of `nets`; torch's random generator does not change."""
        first = cast(Classifier, nets[0])
        with torch.random.fork_rng():
            made = cls(first.num_classes, first.input_shape, [arch_of(net) for net in nets])
        made.members = nn.ModuleList(copy.deepcopy(net) for net in nets)
        return made

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return mean_logits([net(images) for net in self.members])


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Mean of the nets' logits: (B, K) of each net -> (B, K)."""
    return torch.stack(list(logits)).mean(0)
