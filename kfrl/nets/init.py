"""Initialisation of the weights of nets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kfrl.config import Init

HIDDEN_GAIN = math.sqrt(2)
HEAD_GAINS = {"policy": 0.01, "value": 1.0}


def orthogonal(net: nn.Module, head_gains: dict[str, float] | None = None) -> None:
    """Fill convolutions and matrices with orthogonal weights and zero biases, as OpenAI baselines do.

    PyTorch's default has a third of this scale and responds little to motion on the screen. Adam's first updates, whose
    size does not depend on the gradient, then made most ReLUs zero permanently (docs/a3c.md).

    Args:
        net: A module, or a single layer.
        head_gains: Gain of a layer by the last part of its name; by default `HEAD_GAINS`, so that the policy starts
            near uniform. All other layers have `HIDDEN_GAIN`.
    """
    gains = HEAD_GAINS if head_gains is None else head_gains
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fill_orthogonal(layer.weight, gains.get(name.rpartition(".")[2], HIDDEN_GAIN))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def fill_orthogonal(weight: Tensor, gain: float) -> None:
    """Torch's `orthogonal_`, for weights in channels_last order too."""
    weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape), gain))


@torch.no_grad()
def start(net: nn.Module, name: Init) -> None:
    """Initialise convolutions and matrices; `orthogonal` changes nothing, because nets are built with it.

    With n the inputs of a unit and m its layer's outputs:
        torch: weights and biases uniform in -+ 1 / sqrt(n): Torch's default, with which A3C was published;
        xavier: weights uniform in -+ sqrt(6 / (n + m)), biases 0 (Glorot and Bengio 2010): TensorFlow's default;
        he: weights normal with deviation sqrt(2 / n), biases 0 (He et al. 2015).
    """
    if name == "orthogonal":
        return
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            if name == "torch":
                layer.weight.uniform_(-bound, bound)
            elif name == "xavier":
                nn.init.xavier_uniform_(layer.weight)
            else:
                layer.weight.normal_(0.0, math.sqrt(2.0) * bound)
            if layer.bias is not None:
                layer.bias.uniform_(-bound, bound) if name == "torch" else layer.bias.zero_()
