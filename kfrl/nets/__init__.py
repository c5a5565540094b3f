"""Networks: plain modules that know nothing of how they are trained."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from kfrl.errors import UserError, unknown
from kfrl.nets.atari import AtariNet


def arch_of(net: nn.Module) -> dict[str, Any]:
    """The `arch` block from which `build_net` builds the like of one of our nets."""
    return cast(dict[str, Any], net.arch)


def build_net(arch: dict[str, Any], outputs: int) -> nn.Module:
    """Build the net that an `arch` block describes, with `outputs` logits.

    Raises:
        UserError: a family, or a field of one, that this version does not know.
    """
    fields = dict(arch)
    family = str(fields.pop("family", "missing"))
    families = {"atari": AtariNet}
    if family not in families:
        raise unknown("network family", family, families)
    try:
        return families[family](outputs, **fields)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"The architecture block {arch} does not describe a net: {error}.") from None
