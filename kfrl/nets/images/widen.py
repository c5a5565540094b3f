"""Growing a net (Anti-Distillation, section 3): a wider net that starts from the weights of a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kfrl.errors import UserError
from kfrl.nets.images.classifier import LUMA, Classifier

Extension = Literal["zero", "uniform"]

GROWABLE = {"mlp": 1, "conv": 1, "lstm": 2}
"""Families that can grow: nets of consecutive layers, whose units correspond to units of the larger net. The value is
the axis of the first weight that is the image's channels."""


@torch.no_grad()
def grow(small: Classifier, large: Classifier, extension: Extension, theta: float = 0.01) -> dict[str, Tensor]:
    """Write the weights of `small` into `large` and extend them (section 3): w[u] = u.

    The units, maps, classes and pixels of the small net become the first ones of the large net, pixels from the upper
    left. If the small net takes gray images and the large one RGB, the copied weights read the luma. The additional
    weights, to and from the new units, are filled by `extension`. With `zero` the large net has the same logits as the
    small one, and logits 0 for new classes: the new hidden units output 0. Training does not change that, because the
    weights into and out of them have no gradient.

    Args:
        small: The trained net.
        large: The net to write to; statistics of batch norms and other new values do not change.
        extension: `zero`, or `uniform`: U[0, theta].
        theta: Upper end of `uniform`.

    Returns:
        Which weights of the large net are w[u]: a mask of each parameter's shape, by the parameter's name.

    Raises:
        UserError: the nets have different families or depths, the family cannot grow, or a layer of the large net is
            smaller, or none is larger.
    """
    _check_families(small, large)
    source, target = small.state_dict(), large.state_dict()
    if source.keys() != target.keys():
        raise UserError(
            f"A net grows wider, not deeper: {_layers(small)} layers cannot become {_layers(large)}. Name a net with "
            f"{_layers(small)} layers."
        )
    if all(source[name].shape == new.shape for name, new in target.items()):
        raise UserError(
            "A net grows wider, and no layer of this net is larger than the teacher's: this would be fine-tuning, "
            "--method fine-tune. Name a wider net."
        )
    trained = [name for name, _ in large.named_parameters()]
    carried = {}
    for name, new in target.items():
        old = source[name]
        if new.ndim == 0:
            new.copy_(old)
            continue
        old, grown = old.view(small.flattened.get(name, old.shape)), new.view(large.flattened.get(name, new.shape))
        if name == trained[0] and (small.input_shape[0], large.input_shape[0]) == (1, 3):
            old = _of_luma(old, GROWABLE[small.arch["family"]])
        if any(o > n for o, n in zip(old.shape, grown.shape, strict=True)):
            raise UserError(
                f"A net grows wider, but {name} would shrink from {tuple(old.shape)} to {tuple(grown.shape)}. Name a "
                "net whose layers, classes and images are all at least as large."
            )
        place = tuple(slice(size) for size in old.shape)
        if name in trained:
            _extend(grown, extension, theta)
            mask = torch.zeros_like(grown, dtype=torch.bool)
            mask[place] = True
            carried[name] = mask.view(new.shape)
        grown[place] = old
    return carried


def embed(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Turn images of the small net into images of the large one: psi of the paper's section 4, which matches `grow`.

    Gray is repeated as R, G and B, so that their luma is that gray; other channels are the first ones. The image is in
    the upper left. New pixels and new channels are 0, the mean of normalised images. So a fully connected net that was
    grown with `zero` has the same logits for psi(x) as the small net for x. A convolutional net with larger images does
    not, because its convolutions add their biases at the new pixels too, and neither does an LSTM with more rows.

    Args:
        images: (B, C, H, W), normalised.
        shape: (C', H', W') of the large net's images, nowhere smaller.

    Returns:
        (B, C', H', W').

    Raises:
        UserError: a shape that is smaller somewhere.
    """
    if any(old > new for old, new in zip(images.shape[1:], shape, strict=True)):
        raise UserError(
            f"Images of {tuple(images.shape[1:])} (channels, height, width) cannot become smaller ones of "
            f"{tuple(shape)}. Give a student whose images are nowhere smaller than its teacher's; --image-size resizes."
        )
    if (images.shape[1], shape[0]) == (1, 3):
        images = images.expand(-1, 3, -1, -1)
    channels, height, width = (new - old for old, new in zip(images.shape[1:], shape, strict=True))
    return F.pad(images, (0, width, 0, height, 0, channels))


def _of_luma(weights: Tensor, axis: int) -> Tensor:
    """Convert weights for gray images (..., 1, ...) to weights for RGB images (..., 3, ...)."""
    shape = [1] * weights.ndim
    shape[axis] = 3
    return weights * weights.new_tensor(LUMA).view(shape)


def _extend(weights: Tensor, extension: Extension, theta: float) -> None:
    if extension == "zero":
        weights.zero_()
    else:
        weights.uniform_(0.0, theta)


def _check_families(small: Classifier, large: Classifier) -> None:
    old, new = small.arch["family"], large.arch["family"]
    if old != new:
        raise UserError(f"A net grows within its family: a net of family {old!r} cannot become one of {new!r}.")
    if old not in GROWABLE:
        raise UserError(f"Nets of family {old!r} cannot grow. Families that can: {', '.join(GROWABLE)}.")


def _layers(net: Classifier) -> int:
    return sum(name.endswith(("weight", "weight_ih_l0")) for name, _ in net.named_parameters())
