"""Layer tables: the mapping from tensors of another program's state dict to layers of an Atari net, and its input."""

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
"""Kernel -> stride in the nets of Mnih et al. 2015 and 2016, because a state dict does not contain strides."""


@dataclass(frozen=True)
class Conv:
    """One convolution."""

    layer: str
    """Its name, e.g. `features.0` for the tensors `features.0.weight` and `features.0.bias`."""
    stride: Annotated[int, Ge(1)]


@dataclass(frozen=True)
class LayerTable:
    """Names of the layers of a net: convolutions, one fully connected layer and heads, with ReLU between them."""

    convs: tuple[Conv, ...]
    """The convolutions, from input to output."""
    fc: str
    """The fully connected layer."""
    policy: str = ""
    """The layer of the policy's logits."""
    value: str = ""
    """The layer of the value."""
    q: str = ""
    """The layer of a Q-network's action values, instead of policy and value."""
    scale: Literal["0..1", "0..255"] = "0..1"
    """The range of pixels that the net was trained on."""
    stack: Literal["oldest-first", "newest-first"] = "oldest-first"
    """The order of the four frames."""
    ignore: tuple[str, ...] = ()
    """Prefixes of names of tensors to ignore, e.g. of a target net."""

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers, in the order of the forward pass."""
        heads = (self.q,) if self.q else (self.policy, self.value)
        return (*(conv.layer for conv in self.convs), self.fc, *heads)

    def leftover(self, tensors: Tensors) -> list[str]:
        """Names of tensors that no layer of the table uses."""
        used = {f"{layer}.{kind}" for layer in self.layers for kind in ("weight", "bias")}
        return [name for name in tensors if name not in used and not name.startswith(self.ignore or ("\0",))]

    def fits(self, tensors: Tensors) -> bool:
        """Whether the tensors have exactly the layers of this table."""
        return all(f"{layer}.weight" in tensors for layer in self.layers) and not self.leftover(tensors)


def loading(table: LayerTable, tensors: Tensors) -> tuple[str, ...]:
    """For each tensor of a file, a line on how `build_agent` uses it."""
    ours = (*(f"conv{index + 1}" for index in range(len(table.convs))), "fc", "policy", "value")
    first = table.convs[0].layer
    changes = [
        *(["times 255"] if table.scale == "0..255" else []),
        *(["frames reversed"] if table.stack == "newest-first" else []),
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
    """Build the net that `table` describes, with the weights in `tensors`.

    Scale and frame order are folded into the first convolution, so that the input is the usual one: (B, 4, 84, 84)
    uint8, oldest frame first.

    Args:
        table: The names of the layers.
        tensors: The state dict.
        source: The name of the file in errors.

    Raises:
        UserError: layers are missing, do not fit together, or are for another input.
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
        # Nets trained by ACKTR have the bias as a column; a layer without a bias gets a bias of 0.
        state[f"{ours}.bias"] = tensors.get(f"{theirs}.bias", torch.zeros(len(weight))).float().flatten()
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise UserError(f"{source} contains weights that are not finite. Use an earlier checkpoint.")
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{source}: its layers do not fit together. {error}\n{listing(tensors)}") from None
    return net


def listing(tensors: Tensors) -> str:
    """Names and shapes, a line each."""
    return "\n".join(f"  {name}  {' x '.join(map(str, tensor.shape))}" for name, tensor in tensors.items())


def refuse_other_kinds(tensors: Tensors, source: str) -> None:
    """Refuse a policy that is not a feed-forward convolutional net.

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
    """Build the error for an unknown net: it prints the shapes, and a YAML file to complete.

    Args:
        tensors: The state dict.
        source: The name of the file in the error.
        weights: The file's name for the YAML.
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
        f"{source} contains a net that kfrl does not recognise. Its tensors:\n{listing(tensors)}\n"
        "If it consists of convolutions, one fully connected layer and heads, with ReLU between them, describe it in a "
        f"YAML file and give that file instead. Correct the game, the strides and the layers:\n\n{text}\n"
    )


def _quoted(layer: str) -> str:
    """A layer's name in YAML, with quotes if it would be a number, like nn.Sequential's `0` and `1.0`."""
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
            f"{source} does not use {', '.join(leftover[:5])}: leaving a layer out would change the net. If acting "
            "does not need these tensors, list them under `ignore`."
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
            f"{source} has an input of {frames} channels; expected a net for the student's input, {FRAMES} x "
            f"{SCREEN} x {SCREEN} ({FRAMES} gray frames)."
        )


def _padded_features(net: AtariNet) -> set[int]:
    """Number of features of the last convolution, if all are padded by 1, by 2, or by half of their kernels."""
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
            f"{source}: its fully connected layer has {features} inputs, as after padded convolutions; without padding "
            f"it has {net.fc.in_features}. Use an agent whose convolutions have padding 0."
        )
    for size in range(8, 257):
        try:
            if AtariNet(1, net.arch["convs"], 1, screen_size=size).fc.in_features == features:
                made_for = f": it is for {size} x {size} screens"
                break
        except ValueError:
            continue
    raise UserError(
        f"{source}: its fully connected layer has {features} inputs, but {FRAMES} x {SCREEN} x {SCREEN} screens "
        f"give {net.fc.in_features}{made_for}. Expected a net for the student's input, {FRAMES} x {SCREEN} x {SCREEN}."
    )
