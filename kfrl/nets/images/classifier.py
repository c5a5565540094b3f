"""The base class of kfrl's image classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in gray (ITU-R BT.601)."""


class Classifier(nn.Module):
    """A net from images (B, C, H, W) float to logits (B, num_classes).

    Its last layer is `head`; all layers before it can be copied to a net for other classes.
    """

    head_layers: tuple[str, ...] = ("head",)
    hidden_layers: tuple[str, ...] = ()
    """Sub-modules whose outputs are pre-activations z, from input to output; Knowledge Flow links them."""
    maxout_pieces: dict[str, int]
    """The hidden layers that are maxout layers, with their pieces: their outputs are activations, no ReLU follows."""
    flattened: dict[str, tuple[int, ...]]
    """Parameters with flattened axes, e.g. a matrix that reads maps: name -> the full shape, output units first."""
    head: nn.Linear

    def __init__(self, family: str, num_classes: int, input_shape: Sequence[int], **fields: Any) -> None:
        """Store the arguments from which `build_net` builds the same architecture.

        Args:
            family: The net's name in `build_net`.
            num_classes: Number of logits.
            input_shape: (C, H, W).
            **fields: The other arguments of the family, plain values.

        Raises:
            ValueError: the input shape is not three positive numbers, or there is no class.
        """
        super().__init__()
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise ValueError(f"Expected an input shape of channels, height and width, got {tuple(input_shape)}.")
        if num_classes < 1:
            raise ValueError(f"Expected at least one class, got {num_classes}.")
        self.num_classes = num_classes
        self.input_shape: tuple[int, ...] = tuple(input_shape)
        self.maxout_pieces = {}
        self.flattened = {}
        self.arch: dict[str, Any] = {"family": family, "input_shape": list(input_shape), **fields}


def he_initialise(net: Classifier) -> None:
    """Draw the weights of convolutions from N(0, 2 / fan_out) (He et al. 2015) and set the head's bias to zero."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    nn.init.zeros_(net.head.bias)
