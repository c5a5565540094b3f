"""How screens and the weights of convolutions lie in memory: channels last, which is faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def screens(obs: Tensor) -> Tensor:
    """Observations (B, stack, H, W) uint8 as floats of 0 to 1, channels last. Floats are returned as they are."""
    if obs.is_floating_point():
        return obs
    # In two steps, because a product of bytes and floats takes half as long again.
    return obs.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


def channels_last(net: nn.Module) -> bool:
    """Lay the weights of a net with feature maps out channels last; whether it has any."""
    weights = [parameter for parameter in net.parameters() if parameter.dim() == 4]
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return bool(weights)
