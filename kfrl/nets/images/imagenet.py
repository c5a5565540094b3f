"""Residual nets for large images (He et al. 2016, section 4.1): ResNet-18, 34, 50, 101 and 152."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.nets.images.classifier import Classifier, he_initialise

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Depth -> blocks of each stage; from depth 50 on the blocks are bottlenecks of three convolutions."""


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Block(nn.Module):
    """Convolutions and a shortcut, from pre-activation to pre-activation, as in `resnet.BasicBlock`."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        """Map `inputs` channels to `width`, or to 4 `width` with a bottleneck."""
        super().__init__()
        outputs = 4 * width if bottleneck else width
        layers = (
            [_conv(inputs, width, 1), _conv(width, width, 3, stride), _conv(width, outputs, 1)]
            if bottleneck
            else [_conv(inputs, width, 3, stride), _conv(width, outputs, 3)]
        )
        self.layers = nn.ModuleList(layers)
        same = inputs == outputs and stride == 1
        # Option B of the paper: a projection where the shape changes.
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride)

    def forward(self, z: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        x = h = F.relu(z)
        for index, layer in enumerate(self.layers):
            h = layer(h if index == 0 else F.relu(h))
        total: Tensor = h + self.shortcut(x)
        return total


class ImageNetResNet(Classifier):
    """`stem` (7x7, stride 2, then 3x3 max pooling), four stages with 64 to 512 channels (times 4), `head`."""

    hidden_layers = ("stem", "stage1", "stage2", "stage3", "stage4")

    def __init__(self, num_classes: int, input_shape: Sequence[int], depth: int) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W).
            depth: Layers with weights.

        Raises:
            ValueError: there is no such depth.
        """
        super().__init__("imagenet-resnet", num_classes, input_shape, depth=depth)
        if depth not in BLOCKS:
            raise ValueError(f"a ResNet for large images has {', '.join(map(str, BLOCKS))} layers, got {depth}")
        bottleneck = depth >= 50
        self.stem = _conv(input_shape[0], 64, 7, 2)
        channels = 64
        for stage, count in enumerate(BLOCKS[depth], start=1):
            width = 32 * 2**stage
            blocks = []
            for index in range(count):
                blocks.append(Block(channels, width, 2 if stage > 1 and index == 0 else 1, bottleneck))
                channels = 4 * width if bottleneck else width
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
        self.head = nn.Linear(channels, num_classes)
        he_initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h = F.max_pool2d(F.relu(self.stem(images)), 3, 2, padding=1)
        for name in self.hidden_layers[1:]:
            h = self.get_submodule(name)(h)
        logits: Tensor = self.head(F.relu(h).mean((2, 3)))
        return logits
