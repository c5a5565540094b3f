"""Networks: plain modules, independent of the training code."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

from kfrl.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import nn

# Import paths instead of classes, so that a command's help can list nets without importing torch.
FAMILIES = {
    "atari": "kfrl.nets.atari.net:AtariNet",
    "atari-lstm": "kfrl.nets.atari.lstm:LSTMNet",
    "columns": "kfrl.nets.atari.two_column:ColumnNet",
    "conv": "kfrl.nets.images.conv:ConvNet",
    "densenet": "kfrl.nets.images.densenet:DenseNet",
    "ensemble": "kfrl.nets.images.ensemble:EnsembleNet",
    "grown": "kfrl.nets.images.grown:GrownNet",
    "imagenet-resnet": "kfrl.nets.images.imagenet:ImageNetResNet",
    "lstm": "kfrl.nets.images.lstm:RowLSTM",
    "maxout": "kfrl.nets.images.maxout:MaxoutNet",
    "mlp": "kfrl.nets.images.mlp:MLP",
    "pathnet": "kfrl.nets.atari.pathnet:ModularNet",
    "progressive": "kfrl.nets.atari.progressive:from_arch",
    "resnet": "kfrl.nets.images.resnet:ResNet",
    "shallow": "kfrl.nets.images.shallow:ShallowNet",
    "wrn": "kfrl.nets.images.resnet:WideResNet",
}
"""Family -> the class, called as `net(outputs, **fields)`."""


def arch_of(net: nn.Module) -> dict[str, Any]:
    """The `arch` block of a net of kfrl, from which `build_net` builds a net of the same architecture."""
    return cast(dict[str, Any], net.arch)


def heads_of(net: nn.Module) -> tuple[str, ...]:
    """The names of the layers of a net of kfrl that give logits or values."""
    return cast(tuple[str, ...], net.head_layers)


def state_size(net: nn.Module) -> int:
    """Numbers in a game's state of a recurrent net, which has `step` (see `LSTMNet`); 0 for a feed-forward net."""
    return cast(int, getattr(net, "state_size", 0))


def build_net(arch: dict[str, Any], outputs: int) -> nn.Module:
    """Build the net that an `arch` block describes, with `outputs` logits.

    Raises:
        UserError: this version does not know the family or one of its fields.
    """
    fields = dict(arch)
    family = str(fields.pop("family", "missing"))
    if family not in FAMILIES:
        raise unknown("network family", family, FAMILIES)
    kind: type[nn.Module] = resolve_name(FAMILIES[family])
    try:
        return kind(outputs, **fields)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"The architecture block {arch} does not describe a net: {str(error).rstrip('.')}.") from None
