"""An LSTM that reads an image row by row (Anti-Distillation, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kfrl.nets.images.classifier import Classifier


class RowLSTM(Classifier):
    """LSTMs `lstm1`, `lstm2`, ... over the rows of an image; `head` reads the last row's hidden state.

    The gates are inside PyTorch's LSTM, so there are no pre-activations to link: `hidden_layers` is empty.
    """

    def __init__(self, num_classes: int, input_shape: Sequence[int], hidden: Sequence[int]) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W): H steps of C x W numbers.
            hidden: Units of each LSTM.

        Raises:
            ValueError: an LSTM has no units.
        """
        super().__init__("lstm", num_classes, input_shape, hidden=list(hidden))
        if not hidden or min(hidden) < 1:
            raise ValueError(f"Expected LSTMs of at least one unit, got {list(hidden)}.")
        channels, _, width = input_shape
        self._lstms = tuple(f"lstm{index}" for index in range(1, len(hidden) + 1))
        for name, (inputs, units) in zip(self._lstms, pairwise([channels * width, *hidden]), strict=True):
            self.add_module(name, nn.LSTM(inputs, units, batch_first=True))
            # PyTorch stacks the four gates i, f, g, o.
            self.flattened |= {
                f"{name}.weight_ih_l0": (4, units, *((channels, width) if name == "lstm1" else (inputs,))),
                f"{name}.weight_hh_l0": (4, units, units),
                f"{name}.bias_ih_l0": (4, units),
                f"{name}.bias_hh_l0": (4, units),
            }
        self.head = nn.Linear(hidden[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h = images.transpose(1, 2).flatten(2)
        for name in self._lstms:
            h, _ = self.get_submodule(name)(h)
        logits: Tensor = self.head(h[:, -1])
        return logits
