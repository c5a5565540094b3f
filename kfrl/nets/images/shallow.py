"""Shallow nets with a linear bottleneck (Ba and Caruana 2014), trained to mimic deep nets."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.nets.images.classifier import Classifier
from kfrl.nets.linear import Linear


class ShallowNet(Classifier):
    """One wide hidden layer `fc` after a linear bottleneck of `linear` units.

    Its matrix W (hidden x inputs) is a product U V of rank `linear` (section 3.1 of the paper), which learns faster.
    With `maps`, a 5x5 convolution `layer1` with ReLU and 2x2 max pooling comes first.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: Sequence[int],
        linear: int,
        hidden: int,
        maps: int = 0,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W).
            linear: Units of the bottleneck.
            hidden: Units of the hidden layer.
            maps: Channels of the convolution; 0: no convolution.
            dropout: Dropout rate of hidden units.
            input_dropout: Dropout rate of the inputs.

        Raises:
            ValueError: a layer has no units.
        """
        sizes = {"linear": linear, "hidden": hidden, "maps": maps}
        super().__init__("shallow", num_classes, input_shape, **sizes, dropout=dropout, input_dropout=input_dropout)
        if min(linear, hidden) < 1 or maps < 0:
            raise ValueError(f"Expected at least one unit in each layer, got {sizes}.")
        channels, height, width = input_shape
        inputs = prod(input_shape)
        if maps:
            self.layer1 = nn.Conv2d(channels, maps, 5, padding=2)
            inputs = maps * (height // 2) * (width // 2)
        self.input_dropout, self.dropout = nn.Dropout(input_dropout), nn.Dropout(dropout)
        self.linear = Linear(inputs, linear, bias=False)
        self.fc = Linear(linear, hidden)
        self.head = nn.Linear(hidden, num_classes)
        self.hidden_layers = ("layer1", "fc") if maps else ("fc",)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h = self.input_dropout(images)
        if self.arch["maps"]:
            h = F.max_pool2d(F.relu(self.layer1(h)), 2)
        h = F.relu(self.fc(self.linear(h.flatten(1))))
        logits: Tensor = self.head(self.dropout(h))
        return logits
