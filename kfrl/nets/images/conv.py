"""Plain convolutional nets, among them the CIFAR and STL-10 nets of pytorch-playground."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.nets.images.classifier import Classifier
from kfrl.nets.linear import Linear


class ConvNet(Classifier):
    """Blocks of 3x3 convolutions, each with 2x2 max pooling at its end, then fully connected layers and a `head`.

    `layer1`, `layer2`, ... are convolutions, each with its batch norm if any; `fc1`, ... are fully connected layers. A
    ReLU follows each.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: Sequence[int],
        blocks: Sequence[Sequence[int]],
        hidden: Sequence[int] = (),
        batch_norm: bool = False,
        global_pool: bool = False,
    ) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W).
            blocks: Channels of each convolution, by block.
            hidden: Units of each fully connected layer.
            batch_norm: Batch norm after each convolution, without trained scale and shift.
            global_pool: The last block has no padding, and a global max pooling at its end. For images of the size of
                pytorch-playground's, this equals its last 2x2 pooling.

        Raises:
            ValueError: a layer has no channels, or the images are too small for the blocks.
        """
        widths = [width for block in blocks for width in block]
        if not widths or min(*widths, *map(len, blocks), *hidden, 1) < 1:
            raise ValueError(f"Expected blocks of convolutions of at least one channel, got {list(blocks)}.")
        super().__init__(
            "conv",
            num_classes,
            input_shape,
            blocks=[list(block) for block in blocks],
            hidden=list(hidden),
            batch_norm=batch_norm,
            global_pool=global_pool,
        )
        channels, height, width = input_shape
        self._blocks: list[list[str]] = []
        names: list[str] = []
        for index, block in enumerate(blocks):
            last = global_pool and index == len(blocks) - 1
            for out in block:
                names.append(f"layer{len(names) + 1}")
                conv = nn.Conv2d(channels, out, 3, padding=0 if last else 1)
                norm = [nn.BatchNorm2d(out, affine=False)] if batch_norm else []
                self.add_module(names[-1], nn.Sequential(conv, *norm))
                channels = out
                height, width = (height - 2, width - 2) if last else (height, width)
            self._blocks.append(names[-len(block) :])
            height, width = (min(height, 1), min(width, 1)) if last else (height // 2, width // 2)
            if min(height, width) < 1:
                raise ValueError(f"images of {tuple(input_shape)} are too small for {len(blocks)} blocks")
        self._hidden = tuple(f"fc{index}" for index in range(1, len(hidden) + 1))
        features = channels * height * width
        for name, (inputs, units) in zip(self._hidden, pairwise([features, *hidden]), strict=True):
            self.add_module(name, Linear(inputs, units))
        self.head = nn.Linear(hidden[-1] if hidden else features, num_classes)
        self.hidden_layers = (*names, *self._hidden)
        after_maps = f"{(*self._hidden, 'head')[0]}.weight"
        self.flattened = {after_maps: (self.get_parameter(after_maps).shape[0], channels, height, width)}

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h = images
        for index, block in enumerate(self._blocks):
            for name in block:
                h = F.relu(self.get_submodule(name)(h))
            last = index == len(self._blocks) - 1
            h = F.adaptive_max_pool2d(h, 1) if last and self.arch["global_pool"] else F.max_pool2d(h, 2)
        h = h.flatten(1)
        for name in self._hidden:
            h = F.relu(self.get_submodule(name)(h))
        logits: Tensor = self.head(h)
        return logits
