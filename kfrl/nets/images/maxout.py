"""Maxout nets (Goodfellow et al. 2013), among them the FitNets (Romero et al. 2015) and their CIFAR teacher."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from kfrl.nets.images.classifier import Classifier
from kfrl.nets.linear import Linear


class Maxout(nn.Module):
    """Units that are the maximum over `pieces` linear filters each."""

    def __init__(self, filters: nn.Conv2d | nn.Linear, pieces: int) -> None:
        """Take the maximum over every `pieces` consecutive outputs of `filters`.

        Weights are drawn from N(0, 1 / fan_in), biases are 0: the units' mean square is then that of the inputs with
        two pieces, and at most twice that with five.
        """
        super().__init__()
        self.filters, self.pieces = filters, pieces
        nn.init.normal_(filters.weight, std=filters.weight[0].numel() ** -0.5)
        if filters.bias is not None:
            nn.init.zeros_(filters.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, units, H', W'), or (B, F) -> (B, units)."""
        pieces: Tensor = self.filters(x).unflatten(1, (-1, self.pieces))
        return pieces.amax(2)


class MaxoutNet(Classifier):
    """Maxout convolutions `layer1`, ..., each with its max pooling, then fully connected maxout layers `fc1`, ...

    No ReLU follows. A pooling window may reach over the right and lower border, as in pylearn2.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: Sequence[int],
        convs: Sequence[Sequence[int]],
        hidden: Sequence[Sequence[int]] = (),
    ) -> None:
        """Build the net.

        Args:
            num_classes: Number of logits.
            input_shape: (C, H, W).
            convs: (channels, pieces, kernel, padding, pool, stride) of each convolution; `pool` and `stride` are those
                of the pooling: 1 and 1 for none, 0 and 0 for one over the whole map.
            hidden: (units, pieces) of each fully connected layer.

        Raises:
            ValueError: a layer has no units or pieces, or the images are too small for the convolutions.
        """
        convs, hidden = [list(conv) for conv in convs], [list(layer) for layer in hidden]
        super().__init__("maxout", num_classes, input_shape, convs=convs, hidden=hidden)
        if not convs or min(min(conv[:3]) for conv in [*convs, *([*layer, 1] for layer in hidden)]) < 1:
            raise ValueError(f"Expected layers of at least one unit and piece, got {convs} and {hidden}.")
        channels, *size = input_shape
        for index, (out, pieces, kernel, padding, pool, stride) in enumerate(convs, start=1):
            conv = nn.Conv2d(channels, out * pieces, kernel, padding=padding)
            pooling = nn.MaxPool2d(pool, stride, ceil_mode=True) if pool else nn.AdaptiveMaxPool2d(1)
            self.add_module(f"layer{index}", nn.Sequential(Maxout(conv, pieces), pooling))
            channels, size = out, [_pooled(side + 2 * padding - kernel + 1, pool, stride) for side in size]
            if min(size) < 1:
                raise ValueError(
                    f"images of {tuple(input_shape)} are too small for convolution {index} and its pooling"
                )
        features = prod([channels, *size])
        for index, (units, pieces) in enumerate(hidden, start=1):
            self.add_module(f"fc{index}", Maxout(Linear(features, units * pieces), pieces))
            features = units
        self.head = nn.Linear(features, num_classes)
        self.maxout_pieces = {
            **{f"layer{index}": conv[1] for index, conv in enumerate(convs, start=1)},
            **{f"fc{index}": layer[1] for index, layer in enumerate(hidden, start=1)},
        }
        self.hidden_layers = tuple(self.maxout_pieces)
        after_maps = "fc1.filters.weight" if hidden else "head.weight"
        self.flattened = {after_maps: (len(self.get_parameter(after_maps)), channels, *size)}

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        h = images
        for name in self.hidden_layers:
            h = self.get_submodule(name)(h.flatten(1) if name.startswith("fc") else h)
        logits: Tensor = self.head(h.flatten(1))
        return logits


def _pooled(side: int, pool: int, stride: int) -> int:
    """The side of a map after pooling, 0 or less if the map is too small; the last window may reach over the border."""
    if side < 1 or not pool:
        return min(side, 1)
    windows = -((pool - side) // stride) + 1
    return windows - ((windows - 1) * stride >= side)
