"""Initialisation of Q as a selection of the teachers' most useful channels.

A random Q mixes channels before the activation. A Q with a single 1 in each row keeps the channels of the teacher. The
use of a channel is the standard deviation of its activation on observations of the target task, times the norm of the
weights that read it in the teacher's next layer; divided by the mean over the layer, so that teachers of different
scales and widths can be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from kfrl.flow.fold import input_of
from kfrl.nets.hooks import layers_in_use, unwrapped


@torch.no_grad()
def channel_uses(teacher: nn.Module, layer: str, obs: Tensor) -> Tensor | None:
    """The use of each channel of `layer`: (channels,), with mean 1; all 0 if no channel varies on `obs`.

    None if the next layer is not a convolution or fully connected layer that reads these channels.
    """
    layer, order = unwrapped(teacher, layer), layers_in_use(teacher, obs[:1])
    if layer not in order or order[-1] == layer:
        return None
    reader = order[order.index(layer) + 1]
    channels = len(teacher.get_submodule(layer).get_parameter("weight"))
    weight, read = teacher.get_submodule(reader).get_parameter("weight"), input_of(teacher, reader, obs)
    if weight.dim() == 2 and weight.shape[1] % channels == 0:
        # The input of a fully connected layer is a flattened map, channel by channel.
        weight, read = weight.unflatten(1, (channels, -1)), read.flatten(1).unflatten(1, (channels, -1))
    if weight.shape[1] != channels or read.shape[1] != channels:
        return None
    spread = read.transpose(0, 1).flatten(1).std(1)
    uses: Tensor = spread * weight.transpose(0, 1).flatten(1).norm(dim=1)
    return uses / uses.mean().clamp_min(1e-12)


def choose(uses: Sequence[Tensor | None], count: int, first: Collection[int] = ()) -> list[list[int]]:
    """For each teacher layer, its channels among the `count` most useful of all layers, in ascending order.

    Channels of the layers in `first` are chosen before all others.
    """
    known = [
        (source not in first, -use, source, channel)
        for source, part in enumerate(uses)
        if part is not None
        for channel, use in enumerate(part.tolist())
        if use > 0.0
    ]
    best = sorted(known)[:count]
    return [sorted(channel for *_, owner, channel in best if owner == source) for source in range(len(uses))]
