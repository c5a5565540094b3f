"""Memory format of screens and of the weights of convolutions: channels last, which is faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def screens(obs: Tensor) -> Tensor:
    """Convert observations (B, stack, H, W) uint8 to floats of 0 to 1, channels last; floats are returned unchanged."""
    if obs.is_floating_point():
        return obs
    # In two steps, because multiplying bytes by a float takes 1.5 times as long.
    return obs.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


def channels_last(net: nn.Module) -> bool:
    """Convert the weights of a net's convolutions to channels last; returns whether it has convolutions."""
    weights = [parameter for parameter in net.parameters() if parameter.dim() == 4]
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return bool(weights)
