"""Image classifiers by name: the published nets, and every size of their families."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from kfrl.errors import UserError, unknown
from kfrl.nets import build_net

if TYPE_CHECKING:
    from kfrl.nets.classifier import Classifier

Fields = dict[str, Any]

NAMES = ("mlp-1200-1200-dropout", "mlp-800-800", "mnist-mlp")
"""The nets of the papers. The numbers in a name may be others: `mlp-300`."""


def _mlp(match: re.Match[str]) -> Fields:
    # Rates of Hinton et al. 2012, which the distillation paper's large net is trained with.
    rates = {"dropout": 0.5, "input_dropout": 0.2} if match["dropout"] else {}
    return {"family": "mlp", "hidden": _numbers(match["hidden"]), **rates}


def _mnist_mlp(match: re.Match[str]) -> Fields:
    return {"family": "mlp", "hidden": [256, 256], "dropout": 0.2}


_FAMILIES: dict[str, Callable[[re.Match[str]], Fields]] = {
    r"mlp(?P<hidden>(-\d+)+)(?P<dropout>-dropout)?": _mlp,
    r"mnist-mlp": _mnist_mlp,
}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def arch_of(name: str) -> Fields:
    """The architecture block of a net's name, without the input shape.

    Raises:
        UserError: no such net.
    """
    for pattern, fields in _FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            return fields(match)
    raise unknown("net", name, NAMES, "The numbers may be others, e.g. mlp-300.")


def make_net(name: str, input_shape: Sequence[int], num_classes: int) -> Classifier:
    """Build a net with fresh weights.

    Args:
        name: One of `NAMES`, or a name with other numbers.
        input_shape: (C, H, W) of the images.
        num_classes: Number of logits.

    Raises:
        UserError: no such net, or one that cannot be built on such images.
    """
    arch = {**arch_of(name), "input_shape": list(input_shape)}
    try:
        return cast("Classifier", build_net(arch, num_classes))
    except UserError as error:
        shape = " x ".join(map(str, input_shape))
        raise UserError(f"There is no net {name!r} for images of {shape}. {error}") from None
