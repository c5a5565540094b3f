"""The recurrent net of Mnih et al. 2016: an LSTM between the fully connected layer and the heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kfrl.nets.atari.net import PAPER_CONVS, AtariNet
from kfrl.nets.init import orthogonal
from kfrl.nets.linear import Linear


class LSTMNet(AtariNet):
    """An Atari net with as many LSTM cells as units, whose output h the heads read.

        i, f, g, o = W relu(fc) + U h + b,   c' = sigmoid(f) c + sigmoid(i) tanh(g),   h' = sigmoid(o) tanh(c')

    A game's state is [h, c], zero at the start of an episode. The layers `gates` (W, b) and `recurrence` (U) start
    orthogonal with gain 1, as in OpenAI baselines.
    """

    state_layers = ("gates", "recurrence")
    """The layers of the LSTM."""

    def __init__(
        self,
        num_actions: int,
        convs: Sequence[Sequence[int]] = PAPER_CONVS,
        hidden: int = 256,
        frame_stack: int = 4,
        screen_size: int = 84,
    ) -> None:
        """Build the net; `hidden` is also the number of cells. See `AtariNet` for the other arguments."""
        super().__init__(num_actions, convs, hidden, frame_stack, screen_size)
        self.arch = {**{name: value for name, value in self.arch.items() if name != "head"}, "family": "atari-lstm"}
        self.state_size = 2 * hidden
        self.gates, self.recurrence = Linear(hidden, 4 * hidden), Linear(hidden, 4 * hidden, bias=False)
        for layer in self.state_layers:
            orthogonal(self.get_submodule(layer), {"": 1.0})

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, A) and values (B,) of the first observations of episodes (B, stack, H, W) uint8."""
        logits, values, _ = self.step(obs, torch.zeros(len(obs), self.state_size, device=obs.device))
        return logits, values

    def step(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Observations (B, stack, H, W) uint8 and states (B, S) -> logits (B, A), values (B,) and the next states."""
        h, c = state.chunk(2, dim=1)
        i, f, g, o = (self.gates(self.body(obs)) + self.recurrence(h)).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return self.policy(h), self.value(h).squeeze(1), torch.cat([h, c], dim=1)
