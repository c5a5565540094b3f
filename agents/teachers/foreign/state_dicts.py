"""State dicts of other programs, recognised by the names of their tensors."""

from __future__ import annotations

import re

from agents.teachers.foreign.layers import STRIDES, Conv, LayerTable, Tensors
from agents.teachers.foreign.tensors import unwrapped
from envs.preprocessing import PRESETS, Preprocessing

_PARTS = {
    # ikostrikov's ACKTR splits torch.nn modules into weight and bias; then its older form.
    r"\.module\.weight$": ".weight",
    r"\.add_bias\._bias$": ".bias",
    r"^ab(\d)\.bias$": r"conv\1.bias",
    r"^ab_fc1\.bias$": "linear1.bias",
    r"^ab_fc2\.bias$": "critic_linear.bias",
    r"^ab_fc3\.bias$": "actor_linear.bias",
}


def nature(prefix: str, fc: str, *, policy: str = "", value: str = "", q: str = "") -> LayerTable:
    """The layer table of a net with the strides of Mnih et al. 2015, whose convolutions are `prefix` and a number."""
    names = (f"{prefix}{index}" for index in ((1, 2, 3) if prefix.endswith("conv") else (0, 2, 4)))
    convs = tuple(Conv(name, stride) for name, stride in zip(names, (4, 2, 1), strict=True))
    return LayerTable(convs, fc, policy, value, q)


KNOWN: dict[str, dict[str, LayerTable]] = {
    "cleanrl": {
        "ppo": nature("network.", "network.7", policy="actor", value="critic"),
        "dqn": nature("network.", "network.7", q="network.9"),
    },
    "ikostrikov": {
        "actor-critic": nature("base.main.", "base.main.7", policy="dist.linear", value="base.critic_linear"),
        "older actor-critic": nature("conv", "linear1", policy="dist.linear", value="critic_linear"),
        "oldest actor-critic": nature("conv", "linear1", policy="actor_linear", value="critic_linear"),
    },
}
"""Format -> method that trained the net -> layer table."""


def canonical(tensors: Tensors) -> Tensors:
    """The same tensors by canonical names: `<layer>.weight` and `<layer>.bias`, without prefixes of wrappers."""
    renamed = {}
    for name, tensor in unwrapped(tensors).items():
        for pattern, replacement in _PARTS.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def recognise(tensors: Tensors, kind: str | None) -> tuple[str, LayerTable, Preprocessing] | None:
    """Recognise the program that wrote a state dict.

    Args:
        tensors: The result of `canonical`.
        kind: The only format to consider.

    Returns:
        The method, the layer table, and the preprocessing of that program; None if no program is recognised.
    """
    for format_, tables in KNOWN.items():
        for method, table in tables.items():
            if kind in (None, format_) and table.fits(tensors):
                return f"{format_} {method}", table, PRESETS["baselines"]
    plain = _plain(tensors) if kind in (None, "plain") else None
    if plain is not None and plain.fits(tensors):
        return "imported", plain, PRESETS["ale"]
    return None


def _plain(tensors: Tensors) -> LayerTable | None:
    """The table of layers named conv1.. / fc / policy / value, or conv1.. / fc / q, with the usual strides."""
    convs = []
    for index in range(1, 1 + sum(re.fullmatch(r"conv\d+\.weight", name) is not None for name in tensors)):
        shape = tensors[f"conv{index}.weight"].shape if f"conv{index}.weight" in tensors else ()
        if len(shape) != 4 or shape[2] not in STRIDES:
            return None
        convs.append(Conv(f"conv{index}", STRIDES[shape[2]]))
    if "q.weight" in tensors:
        return LayerTable(tuple(convs), "fc", q="q")
    return LayerTable(tuple(convs), "fc", policy="policy", value="value")
