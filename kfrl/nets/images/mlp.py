"""Multi-layer perceptrons, among them those of Hinton et al. 2015 and the MNIST net of pytorch-playground."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.nets.images.classifier import Classifier
from kfrl.nets.linear import Linear


class MLP(Classifier):
    """Fully connected layers `fc1`, `fc2`, ... with ReLU and dropout, and a linear `head`."""

    def __init__(
        self,
        num_classes: int,
        input_shape: Sequence[int],
        hidden: Sequence[int],
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W), flattened.
            hidden: Units of each hidden layer.
            dropout: Dropout rate of hidden units.
            input_dropout: Dropout rate of the inputs.

        Raises:
            ValueError: a layer has no units.
        """
        super().__init__(
            "mlp", num_classes, input_shape, hidden=list(hidden), dropout=dropout, input_dropout=input_dropout
        )
        if not hidden or min(hidden) < 1:
            raise ValueError(f"Expected hidden layers of at least one unit, got {list(hidden)}.")
        self.dropout = nn.Dropout(dropout)
        self.input_dropout = nn.Dropout(input_dropout)
        self.hidden_layers = tuple(f"fc{index}" for index in range(1, len(hidden) + 1))
        for name, (inputs, units) in zip(self.hidden_layers, pairwise([prod(input_shape), *hidden]), strict=True):
            self.add_module(name, Linear(inputs, units))
        self.head = nn.Linear(hidden[-1], num_classes)
        self.flattened = {"fc1.weight": (hidden[0], *input_shape)}

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h = self.input_dropout(images.flatten(1))
        for name in self.hidden_layers:
            h = self.dropout(F.relu(self.get_submodule(name)(h)))
        logits: Tensor = self.head(h)
        return logits
