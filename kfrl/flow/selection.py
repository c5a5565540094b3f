"""Q that starts as a choice of the teachers' most useful channels.

A random Q mixes channels that the activation after it should keep apart. A Q with a single 1 in each row keeps what a
teacher has learned. The use of a channel is the spread of its activation on observations of the target task, times the
norm of the weights that read it in the teacher's next layer; as a share of the layer's sum, so that teachers of
different scales can be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from kfrl.flow.fold import input_of
from kfrl.nets.hooks import layers_in_use


@torch.no_grad()
def channel_uses(teacher: nn.Module, layer: str, obs: Tensor) -> Tensor | None:
    """The use of each channel of `layer` to the layer after it: (channels,), summing to 1; 0 if none changes on `obs`.

    None where what follows is no convolution or fully connected layer of as many channels.
    """
    order = layers_in_use(teacher, obs[:1])
    if layer not in order or order[-1] == layer:
        return None
    reader = order[order.index(layer) + 1]
    channels = len(teacher.get_submodule(layer).get_parameter("weight"))
    weight, read = teacher.get_submodule(reader).get_parameter("weight"), input_of(teacher, reader, obs)
    if weight.dim() == 2 and weight.shape[1] % channels == 0:
        # A fully connected layer reads a map's channels one after the other.
        weight, read = weight.unflatten(1, (channels, -1)), read.flatten(1).unflatten(1, (channels, -1))
    if weight.shape[1] != channels or read.shape[1] != channels:
        return None
    spread = read.transpose(0, 1).flatten(1).std(1)
    uses: Tensor = spread * weight.transpose(0, 1).flatten(1).norm(dim=1)
    return uses / uses.sum().clamp_min(1e-12)


def choose(uses: Sequence[Tensor | None], count: int, first: Collection[int] = ()) -> list[list[int]]:
    """For each teacher layer those of its channels that are among the `count` most useful of all, ascending.

    Channels of the layers in `first` come before all others, which get what is left.
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
