"""Densely connected nets for small images (Huang et al. 2017, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.nets.images.classifier import Classifier, he_initialise


def _norm_conv(inputs: int, outputs: int, kernel: int, dropout: float) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv, nn.Dropout(dropout))


class DenseLayer(nn.Module):
    """Appends `growth` new channels to its input."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool, dropout: float) -> None:
        """Map `inputs` channels to `inputs + growth`."""
        super().__init__()
        narrow = [_norm_conv(inputs, 4 * growth, 1, dropout)] if bottleneck else []
        self.added = nn.Sequential(*narrow, _norm_conv(4 * growth if bottleneck else inputs, growth, 3, dropout))

    def forward(self, z: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, inputs + growth, H, W)."""
        return torch.cat([z, self.added(z)], 1)


class DenseNet(Classifier):
    """DenseNet and DenseNet-BC: `stem`, three dense blocks with transitions between them, `head`.

    Links connect whole blocks: a block's output is the concatenation of its input and its layers' outputs, before the
    batch norm and the ReLU that read it.
    """

    hidden_layers = ("stem", "block1", "block2", "block3")

    def __init__(
        self,
        num_classes: int,
        input_shape: Sequence[int],
        depth: int,
        growth: int,
        bottleneck: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W).
            depth: Layers with weights, 3 n + 4; with bottlenecks 6 n + 4, 6 n + 6 or 6 n + 8, which are the same net,
                because each block has (depth - 4) / 6 layers, rounded down (DenseNet-BC 90-60, 80-80, 80-120).
            growth: Channels that a layer adds.
            bottleneck: DenseNet-BC: a 1x1 convolution to 4 `growth` channels before each 3x3, and transitions that
                halve the number of channels.
            dropout: Rate after each convolution but the first; the paper's 0.2 is for training without augmentation.

        Raises:
            ValueError: the depth or the growth is not valid.
        """
        super().__init__(
            "densenet", num_classes, input_shape, depth=depth, growth=growth, bottleneck=bottleneck, dropout=dropout
        )
        step = 6 if bottleneck else 3
        if depth < step + 4 or (depth - 4) % (2 if bottleneck else 3) or growth < 1:
            count = "-BC has an even number of" if bottleneck else " has 3 n + 4"
            raise ValueError(f"a DenseNet{count} layers (40, 100, 190) and a growth, got {depth} and {growth}")
        channels = 2 * growth if bottleneck else 16
        self.stem = nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)
        for index in range(1, 4):
            layers = []
            for _ in range((depth - 4) // step):
                layers.append(DenseLayer(channels, growth, bottleneck, dropout))
                channels += growth
            self.add_module(f"block{index}", nn.Sequential(*layers))
            if index < 3:
                kept = channels // 2 if bottleneck else channels
                narrow = _norm_conv(channels, kept, 1, dropout)
                self.add_module(f"transition{index}", nn.Sequential(narrow, nn.AvgPool2d(2)))
                channels = kept
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        he_initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h = images
        for name in ("stem", "block1", "transition1", "block2", "transition2", "block3"):
            h = self.get_submodule(name)(h)
        logits: Tensor = self.head(F.relu(self.norm(h)).mean((2, 3)))
        return logits
