"""Residual nets for small images: He et al. 2016, section 4.2, and the wide ones of Zagoruyko and Komodakis 2016."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.nets.images.classifier import Classifier, he_initialise


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, from pre-activation to pre-activation.

    The ReLU at the end of the paper's block is at the start of the next block here, so that the sum before it can be
    linked. The function of the net is the same.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Map `inputs` channels to `outputs`."""
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, outputs - inputs

    def forward(self, z: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        x = F.relu(z)
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        # Option A of the paper: every second pixel, new channels zero, no parameters.
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        total: Tensor = h + shortcut
        return total


class ResNet(Classifier):
    """ResNet-20/32/44/56/110: `stem`, three stages of (depth - 2) / 6 blocks with 16, 32, 64 channels, `head`."""

    hidden_layers = ("stem", "stage1", "stage2", "stage3")

    def __init__(self, num_classes: int, input_shape: Sequence[int], depth: int) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W).
            depth: Layers with weights, 6 n + 2.

        Raises:
            ValueError: the depth is not 6 n + 2.
        """
        super().__init__("resnet", num_classes, input_shape, depth=depth)
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"a ResNet for small images has 6 n + 2 layers (8, 14, 20, 32, 110), got {depth}")
        widths = (16, 16, 32, 64)
        self.stem = nn.Sequential(_conv3x3(input_shape[0], widths[0]), nn.BatchNorm2d(widths[0]))
        for stage, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            first = BasicBlock(inputs, outputs, 1 if stage == 1 else 2)
            rest = [BasicBlock(outputs, outputs, 1) for _ in range((depth - 2) // 6 - 1)]
            self.add_module(f"stage{stage}", nn.Sequential(first, *rest))
        self.head = nn.Linear(widths[-1], num_classes)
        he_initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h = images
        for name in self.hidden_layers:
            h = self.get_submodule(name)(h)
        logits: Tensor = self.head(F.relu(h).mean((2, 3)))
        return logits


class WideBlock(nn.Module):
    """Twice BN, ReLU and a 3x3 convolution, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        """Map `inputs` channels to `outputs`."""
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv3x3(outputs, outputs)
        self.dropout = nn.Dropout(dropout)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        x = F.relu(self.bn1(z))
        h = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(x)))))
        total: Tensor = h + (z if self.shortcut is None else self.shortcut(x))
        return total


class WideResNet(Classifier):
    """WRN-depth-widen: `stem`, three stages of (depth - 4) / 6 blocks of 16, 32, 64 times `widen` channels, `head`."""

    hidden_layers = ("stem", "stage1", "stage2", "stage3")

    def __init__(
        self, num_classes: int, input_shape: Sequence[int], depth: int, widen: int, dropout: float = 0.0
    ) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W).
            depth: Layers with weights, 6 n + 4.
            widen: k, the width as a multiple of a ResNet's.
            dropout: Dropout rate between the convolutions of a block.

        Raises:
            ValueError: the depth is not 6 n + 4, or the width is below 1.
        """
        super().__init__("wrn", num_classes, input_shape, depth=depth, widen=widen, dropout=dropout)
        if depth < 10 or depth % 6 != 4 or widen < 1:
            raise ValueError(f"a wide ResNet has 6 n + 4 layers (10, 16, 28, 40) and a width, got {depth} and {widen}")
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.stem = _conv3x3(input_shape[0], widths[0])
        for stage, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            first = WideBlock(inputs, outputs, 1 if stage == 1 else 2, dropout)
            rest = [WideBlock(outputs, outputs, 1, dropout) for _ in range((depth - 4) // 6 - 1)]
            self.add_module(f"stage{stage}", nn.Sequential(first, *rest))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        he_initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h = images
        for name in self.hidden_layers:
            h = self.get_submodule(name)(h)
        logits: Tensor = self.head(F.relu(self.norm(h)).mean((2, 3)))
        return logits
