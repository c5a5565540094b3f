"""Growing a trained net (Anti-Distillation, section 3): a wider one that starts from its weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kfrl.errors import UserError
from kfrl.nets.images.classifier import LUMA, Classifier

Extension = Literal["zero", "uniform"]

GROWABLE = {"mlp": 1, "conv": 1, "lstm": 2}
"""Families whose layers stand one after the other, so that a unit of the small net is one of the large net, and which
axis of the first weight is the image's channels."""


@torch.no_grad()
def grow(small: Classifier, large: Classifier, extension: Extension, theta: float = 0.01) -> None:
    """Write the weights of `small` into `large` and extend them: phi of the paper's section 4 with w[u] = u.

    The units, maps, classes and pixels of the small net are the first of the large one, pixels from the upper left. A
    net of gray images reads the gray (luma) of RGB ones. All weights that the large net has more, to and from the new
    units, are extended. With `zero` the large net says of an image what the small one says, and of new classes 0: new
    hidden units are silent. They also stay so in training, because neither the weights into them nor those out of them
    have a gradient.

    Args:
        small: The trained net.
        large: Its weights are overwritten; statistics of batch norms and everything else new keep their values.
        extension: `zero`, or `uniform`: U[0, theta].
        theta: Upper end of `uniform`.

    Raises:
        UserError: nets of two families, of a family that does not grow, of different depth, or a large net that is
            smaller somewhere or nowhere larger.
    """
    _check_families(small, large)
    source, target = small.state_dict(), large.state_dict()
    if source.keys() != target.keys():
        raise UserError(
            f"A net grows wider, not deeper: {_layers(small)} layers cannot become {_layers(large)}. Name a net with "
            "as many layers."
        )
    if all(source[name].shape == new.shape for name, new in target.items()):
        raise UserError(
            "A net grows wider, and this one is nowhere larger than its teacher: it would only be trained on, which is "
            "--method fine-tune. Name a wider net."
        )
    trained = [name for name, _ in large.named_parameters()]
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
        if name in trained:
            _extend(grown, extension, theta)
        grown[tuple(slice(size) for size in old.shape)] = old


def _of_luma(weights: Tensor, axis: int) -> Tensor:
    """Weights on gray (..., 1, ...) as weights on R, G and B (..., 3, ...)."""
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
        raise UserError(f"Nets of family {old!r} do not grow; those that do: {', '.join(GROWABLE)}.")


def _layers(net: Classifier) -> int:
    return sum(name.endswith(("weight", "weight_ih_l0")) for name, _ in net.named_parameters())
