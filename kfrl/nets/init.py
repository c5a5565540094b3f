"""The weights that nets start from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HIDDEN_GAIN = math.sqrt(2)
HEAD_GAINS = {"policy": 0.01, "value": 1.0}


def orthogonal(net: nn.Module, head_gains: dict[str, float] | None = None) -> None:
    """Fill convolutions and matrices with orthogonal weights and zero biases, as OpenAI baselines do.

    From Torch's default, a third of that scale and nearly blind to what moves on a screen, Adam's first updates, which
    are of one size whatever the gradient, turned most ReLUs off for good (docs/a3c.md).

    Args:
        net: A module, or a single layer.
        head_gains: Gain of a layer by the last part of its name; by default those of `HEAD_GAINS`, for a policy that
            starts near uniform. All others have `HIDDEN_GAIN`.
    """
    gains = HEAD_GAINS if head_gains is None else head_gains
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fill_orthogonal(layer.weight, gains.get(name.rpartition(".")[2], HIDDEN_GAIN))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def fill_orthogonal(weight: Tensor, gain: float) -> None:
    """Torch's `orthogonal_`, which takes no weights in channels_last order."""
    weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape), gain))
