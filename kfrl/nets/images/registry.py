"""Image classifiers by name: the published nets, and other sizes of their families."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

from kfrl.errors import UserError, unknown
from kfrl.nets import build_net

if TYPE_CHECKING:
    from kfrl.nets.images.classifier import Classifier

NAMES = (
    "mlp-1200-1200-dropout",
    "mlp-800-800",
    "mnist-mlp",
    "cifar-conv-128",
    "stl-conv-32",
    "conv-16-32",
    "lstm-128",
    "fitnet-1",
    "fitnet-4",
    "fitnet-mnist",
    "maxout-cifar",
    "128c-p-1200l-30k",
    "400l-8k",
    "resnet-20",
    "resnet-32",
    "resnet-110",
    "imagenet-resnet-18",
    "imagenet-resnet-50",
    "wrn-16-2",
    "wrn-28-2",
    "wrn-40-2",
    "densenet-100-24",
    "densenet-bc-100-12",
    "densenet-bc-190-40",
)
"""The nets of the papers. Other numbers in a name are valid too: `mlp-300`, `resnet-56`. mlp, wrn, densenet and the
shallow nets with a linear bottleneck (`64c-p-300l-2k`, `250l-4k`) accept `-dropout`, with the rate of their paper, or
`-dropout-0.4`."""

_DROPOUT = r"(-dropout(?:-0?\.\d+)?)?"

# Pattern of a name -> function from its numbers and its dropout suffix to the architecture block.
_FAMILIES: dict[str, Callable[[list[int], str | None], dict[str, Any]]] = {
    # Rates of Hinton et al. 2012, used for the large net of the distillation paper.
    rf"mlp((?:-\d+)+){_DROPOUT}": lambda hidden, dropout: {
        "family": "mlp",
        "hidden": hidden,
        **_dropout(dropout, 0.5),
        **({"input_dropout": 0.2} if dropout else {}),
    },
    r"mnist-mlp()()": lambda *_: {"family": "mlp", "hidden": [256, 256], "dropout": 0.2},
    r"cifar-conv-(\d+)()": lambda n, _: _playground([[1, 1], [2, 2], [4, 4], [8]], n[0]),
    r"stl-conv-(\d+)()": lambda n, _: _playground([[1], [2], [4], [4], [8, 8]], n[0]),
    r"conv((?:-\d+)+)()": lambda widths, _: {"family": "conv", "blocks": [[width] for width in widths]},
    # Ba and Caruana 2014: maps of a convolution with pooling, linear units, hidden units in thousands.
    rf"((?:\d+c-p-)?\d+l-\d+k){_DROPOUT}": lambda n, dropout: _shallow(n, dropout, 1000),
    rf"((?:\d+c-p-)?\d+l-\d+){_DROPOUT}": lambda n, dropout: _shallow(n, dropout, 1),
    # Romero et al. 2015, by their configuration files; their teacher is that of Goodfellow et al. 2013.
    r"fitnet-1()()": lambda *_: _fitnet([16] * 3, [32] * 3, [48, 48, 64]),
    r"fitnet-4()()": lambda *_: _fitnet([32, 32, 32, 48, 48], [80] * 6, [128] * 6),
    r"fitnet-mnist()()": lambda *_: {
        "family": "maxout",
        "convs": [
            [16, 2, 5, 0, 1, 1],
            [16, 2, 3, 0, 4, 2],
            [16, 2, 5, 3, 1, 1],
            [16, 2, 3, 0, 4, 2],
            [12, 4, 3, 3, 1, 1],
            [12, 4, 3, 0, 2, 2],
        ],
    },
    r"maxout-cifar()()": lambda *_: {
        "family": "maxout",
        "convs": [[96, 2, 8, 4, 4, 2], [192, 2, 8, 3, 4, 2], [192, 2, 5, 3, 2, 2]],
        "hidden": [[500, 5]],
    },
    r"lstm((?:-\d+)+)()": lambda hidden, _: {"family": "lstm", "hidden": hidden},
    r"resnet-(\d+)()": lambda n, _: {"family": "resnet", "depth": n[0]},
    r"imagenet-resnet-(\d+)()": lambda n, _: {"family": "imagenet-resnet", "depth": n[0]},
    # Zagoruyko and Komodakis 2016, section 3.4: 0.3 on CIFAR.
    rf"wrn(-\d+-\d+){_DROPOUT}": lambda n, dropout: {
        "family": "wrn",
        "depth": n[0],
        "widen": n[1],
        **_dropout(dropout, 0.3),
    },
    rf"densenet(-\d+-\d+){_DROPOUT}": lambda n, dropout: _densenet(n, False, dropout),
    rf"densenet-bc(-\d+-\d+){_DROPOUT}": lambda n, dropout: _densenet(n, True, dropout),
}


def _dropout(words: str | None, rate: float) -> dict[str, float]:
    """The rate in `-dropout-RATE`, or the paper's; empty without the suffix."""
    return {"dropout": float(words.removeprefix("-dropout").lstrip("-") or rate)} if words else {}


def _shallow(n: list[int], dropout: str | None, unit: int) -> dict[str, Any]:
    *maps, linear, hidden = n
    # Table 2 uses dropout on input and hidden units; 0.2 and 0.5 are the rates of Hinton et al. 2012.
    held = {**_dropout(dropout, 0.5), **({"input_dropout": 0.2} if dropout else {})}
    return {"family": "shallow", "maps": sum(maps), "linear": linear, "hidden": hidden * unit, **held}


def _fitnet(*blocks: list[int]) -> dict[str, Any]:
    """3x3 convolutions of two pieces: 2x2 pooling after each block, global pooling after the last."""
    convs = [[width, 2, 3, 1, 1, 1] for block in blocks for width in block]
    for end in accumulate(map(len, blocks)):
        convs[end - 1][4:] = [0, 0] if end == len(convs) else [2, 2]
    return {"family": "maxout", "convs": convs, "hidden": [[500, 5]]}


def _densenet(n: list[int], bottleneck: bool, dropout: str | None) -> dict[str, Any]:
    # Huang et al. 2017, section 3: 0.2 without augmentation.
    held = _dropout(dropout, 0.2)
    return {"family": "densenet", "depth": n[0], "growth": n[1], "bottleneck": bottleneck, **held}


def _playground(blocks: list[list[int]], channels: int) -> dict[str, Any]:
    widths = [[width * channels for width in block] for block in blocks]
    return {"family": "conv", "blocks": widths, "batch_norm": True, "global_pool": True}


def arch_of(name: str) -> dict[str, Any]:
    """The architecture block for a net's name, without the input shape.

    Raises:
        UserError: there is no such net.
    """
    for pattern, fields in _FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            return fields([int(number) for number in re.findall(r"\d+", match[1])], match[2])
    raise unknown("net", name, NAMES, "Other numbers are valid too, e.g. mlp-300 or resnet-56.")


def make_net(name: str, input_shape: Sequence[int], num_classes: int) -> Classifier:
    """Build a net with fresh weights.

    Args:
        name: One of `NAMES`, or a name with other numbers.
        input_shape: (C, H, W) of the images.
        num_classes: Number of logits.

    Raises:
        UserError: there is no such net, or it cannot be built for such images.
    """
    arch = {**arch_of(name), "input_shape": list(input_shape)}
    try:
        return cast("Classifier", build_net(arch, num_classes))
    except UserError as error:
        shape = " x ".join(map(str, input_shape))
        raise UserError(f"There is no net {name!r} for images of {shape}. {error}") from None
