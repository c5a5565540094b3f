"""Layer tables: which tensors of a foreign state dict are which layer of an Atari net, and what it expects to see."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from envs.preprocessing import SCREEN
from kfrl.errors import UserError, unknown
from kfrl.nets.atari.net import AtariNet

Tensors = Mapping[str, Tensor]
FRAMES = 4
STRIDES = {8: 4, 4: 2, 3: 1}
"""Kernel -> stride in the nets of Mnih et al. 2015 and 2016; a state dict does not hold strides."""


@dataclass(frozen=True)
class Conv:
    """One convolution."""

    layer: str
    """Its name: `features.0` for the tensors `features.0.weight` and `features.0.bias`."""
    stride: Annotated[int, Ge(1)]


@dataclass(frozen=True)
class LayerTable:
    """A net of convolutions, one fully connected layer and its heads, ReLU between them, by the names of its layers."""

    convs: tuple[Conv, ...]
    """Input side first."""
    fc: str
    """The fully connected layer."""
    policy: str = ""
    """The layer of the policy's logits."""
    value: str = ""
    """The layer of the value."""
    q: str = ""
    """Instead of policy and value: the layer of a Q-network's action values."""
    scale: Literal["0..1", "0..255"] = "0..1"
    """The range of pixels that the net was trained on."""
    stack: Literal["oldest-first", "newest-first"] = "oldest-first"
    """The order of the four frames."""
    ignore: tuple[str, ...] = ()
    """Tensors whose names start like this are left out, e.g. a target net."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer, in the order of the input's way through the net."""
        heads = (self.q,) if self.q else (self.policy, self.value)
        return (*(conv.layer for conv in self.convs), self.fc, *heads)

    def leftover(self, tensors: Tensors) -> list[str]:
        """Names of tensors that no layer of the table uses."""
        used = {f"{layer}.{kind}" for layer in self.layers for kind in ("weight", "bias")}
        return [name for name in tensors if name not in used and not name.startswith(self.ignore or ("\0",))]

    def fits(self, tensors: Tensors) -> bool:
        """Whether the names are those of this table, with nothing missing and nothing left over."""
        return all(f"{layer}.weight" in tensors for layer in self.layers) and not self.leftover(tensors)


def loading(table: LayerTable, tensors: Tensors) -> tuple[str, ...]:
    """What becomes of every tensor of a file that `build_agent` takes, a line each."""
    ours = (*(f"conv{index + 1}" for index in range(len(table.convs))), "fc", "policy", "value")
    first = table.convs[0].layer
    changes = [
        *(["times 255"] if table.scale == "0..255" else []),
        *(["frames turned round"] if table.stack == "newest-first" else []),
    ]
    lines = []
    for own, theirs in zip(ours, table.layers, strict=False):
        for kind in ("weight", "bias"):
            name = f"{theirs}.{kind}"
            how = f" ({', '.join(changes)})" if theirs == first and kind == "weight" and changes else ""
            lines.append(
                f"loaded   {own}.{kind} from {name}{how}"
                if name in tensors
                else f"fresh    {own}.{kind} = 0; the file has no {name}"
            )
    used = {f"{layer}.{kind}" for layer in table.layers for kind in ("weight", "bias")}
    return (*lines, *(f"skipped  {name}" for name in tensors if name not in used))


def build_agent(table: LayerTable, tensors: Tensors, source: str) -> AtariNet:
    """Build the net that `table` finds in `tensors`.

    Scale and frame order are folded into the first convolution, so that the net is called like any other:
    (B, 4, 84, 84) uint8, oldest frame first.

    Args:
        table: The names.
        tensors: The state dict.
        source: What to call it in errors.

    Raises:
        UserError: layers that are missing, do not fit together, or were made for another input.
    """
    _check_names(table, tensors, source)
    weights = {layer: tensors[f"{layer}.weight"].float() for layer in table.layers}
    _check_shapes(table, weights, source)
    first = table.convs[0].layer
    if table.scale == "0..255":
        weights[first] = weights[first] * 255
    if table.stack == "newest-first":
        weights[first] = weights[first].flip(1)
    convs = [[*weights[conv.layer].shape[::2], conv.stride] for conv in table.convs]
    head = table.q or table.policy
    hidden = weights[table.fc].shape[0]
    try:
        net = AtariNet(weights[head].shape[0], convs, hidden, head="q" if table.q else "actor-critic")
    except ValueError as error:
        raise UserError(f"{source} was not made for {FRAMES} x {SCREEN} x {SCREEN} screens. {error}") from None
    _check_screen(net, weights[table.fc].shape[1], source)
    state = {}
    for ours, theirs in zip((*net.hidden_layers, *net.head_layers), table.layers, strict=False):
        weight = weights[theirs]
        state[f"{ours}.weight"] = weight
        # A column in nets trained by ACKTR; a layer without a bias has a bias of 0.
        state[f"{ours}.bias"] = tensors.get(f"{theirs}.bias", torch.zeros(len(weight))).float().flatten()
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise UserError(f"{source} holds weights that are not finite numbers. Take an earlier checkpoint.")
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{source}: its layers do not fit together. {error}\n{listing(tensors)}") from None
    return net


def listing(tensors: Tensors) -> str:
    """Names and shapes, a line each."""
    return "\n".join(f"  {name}  {' x '.join(map(str, tensor.shape))}" for name, tensor in tensors.items())


def refuse_other_kinds(tensors: Tensors, source: str) -> None:
    """Refuse a policy that is no feed-forward convolutional net.

    Raises:
        UserError: it is recurrent, or has no convolution.
    """
    valid = "Valid are feed-forward convolutional nets (CnnPolicy)."
    recurrent = [name for name in tensors if "weight_hh" in name]
    if recurrent:
        raise UserError(f"{source} holds a recurrent policy (LSTM or GRU: {recurrent[0]}). {valid}")
    if not any(tensor.dim() == 4 for tensor in tensors.values()):
        raise UserError(f"{source} holds a policy without convolutions (MLP?), of {len(tensors)} tensors. {valid}")


def unrecognised(tensors: Tensors, source: str, weights: str) -> UserError:
    """Build the error for shapes of no known net: it prints them, and the YAML that would describe them.

    Args:
        tensors: The state dict.
        source: What to call it.
        weights: The file's name, for the YAML.
    """
    refuse_other_kinds(tensors, source)
    layers = {name.removesuffix(".weight"): tensor.shape for name, tensor in tensors.items() if ".weight" in name}
    convs = {layer: shape for layer, shape in layers.items() if len(shape) == 4}
    linears = {layer: shape for layer, shape in layers.items() if len(shape) == 2}
    fc, *heads = linears or ["?"]
    value = [layer for layer in heads if linears[layer][0] == 1]
    policy = [layer for layer in heads if linears[layer][0] != 1]
    lines = [f"weights: {weights}", "game: Breakout", "layers:", "  convs:"]
    strides = {layer: STRIDES.get(shape[2], 1) for layer, shape in convs.items()}
    lines += [f"    - {{layer: {_quoted(layer)}, stride: {stride}}}" for layer, stride in strides.items()]
    lines.append(f"  fc: {_quoted(fc)}")
    if policy and value:
        lines += [f"  policy: {_quoted(policy[-1])}", f"  value: {_quoted(value[-1])}"]
    else:
        lines.append(f"  q: {_quoted(heads[-1]) if heads else '?'}")
    text = "\n".join(lines)
    return UserError(
        f"{source} holds a net that kfrl does not know. Its tensors:\n{listing(tensors)}\n"
        "If it is convolutions, one fully connected layer and its heads, with ReLU between them, describe it in a YAML "
        f"file and give that instead; with your game, and strides and layers as they are:\n\n{text}\n"
    )


def _quoted(layer: str) -> str:
    """A layer's name in YAML: nn.Sequential's `0` and `1.0` would be numbers without quotes."""
    return f'"{layer}"' if re.fullmatch(r"[\d.]+", layer) else layer


def _check_names(table: LayerTable, tensors: Tensors, source: str) -> None:
    if bool(table.q) == bool(table.policy and table.value) or not table.convs:
        raise UserError(f"{source}: expected at least one convolution, and the layers policy and value, or q alone.")
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    for layer in table.layers:
        if f"{layer}.weight" not in tensors:
            raise unknown(f"layer in {source},", layer, names)
    leftover = table.leftover(tensors)
    if leftover:
        raise UserError(
            f"{source} uses no tensor {', '.join(leftover[:5])}: a layer that is left out would change the net. If it "
            "plays no part in acting, list it under `ignore`."
        )


def _check_shapes(table: LayerTable, weights: Tensors, source: str) -> None:
    for position, layer in enumerate(table.layers):
        shape, conv = weights[layer].shape, position < len(table.convs)
        if len(shape) != (4 if conv else 2) or (conv and shape[2] != shape[3]):
            kind = "a convolution with a square kernel" if conv else "a linear layer"
            raise UserError(f"{source}: expected {layer} to be {kind}, got a weight of shape {tuple(shape)}.")
    frames = weights[table.convs[0].layer].shape[1]
    if frames != FRAMES:
        raise UserError(
            f"{source} sees {frames} x ? x ? pictures; a teacher sees what its student sees, {FRAMES} gray frames: "
            f"{FRAMES} x {SCREEN} x {SCREEN}."
        )


def _padded_features(net: AtariNet) -> set[int]:
    """What the last convolution gives where all are padded: by 1, by 2, or by half of their kernels."""
    found = set()
    for padding in (1, 2, None):
        size = SCREEN
        for _, kernel, stride in net.arch["convs"]:
            size = (size + 2 * (kernel // 2 if padding is None else padding) - kernel) // stride + 1
        found.add(net.arch["convs"][-1][0] * size**2)
    return found


def _check_screen(net: AtariNet, features: int, source: str) -> None:
    if features == net.fc.in_features:
        return
    made_for = ""
    if _padded_features(net) & {features}:
        raise UserError(
            f"{source}: its fully connected layer takes {features} numbers, as if its convolutions were padded, and "
            f"kfrl's pad nothing: theirs give {net.fc.in_features}. Take an agent whose convolutions have padding 0."
        )
    for size in range(8, 257):
        try:
            if AtariNet(1, net.arch["convs"], 1, screen_size=size).fc.in_features == features:
                made_for = f": it was made for {size} x {size} screens"
                break
        except ValueError:
            continue
    raise UserError(
        f"{source}: its fully connected layer takes {features} numbers, where {FRAMES} x {SCREEN} x {SCREEN} screens "
        f"give {net.fc.in_features}{made_for}. A teacher sees what its student sees, {FRAMES} x {SCREEN} x {SCREEN}."
    )
