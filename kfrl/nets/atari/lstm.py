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

    def step(self, obs: Tensor, state: Tensor, ended: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (T K, A), values (T K,) and the next states (K, S) of T steps of K games.

        Args:
            obs: (T K, stack, H, W) uint8, step by step.
            state: (K, S) before the first step.
            ended: (T, K) bool, whether a game's episode ended with a step; by default none did.
        """
        outputs = []
        read, games = self.gates(self.body(obs)), state.shape[0]
        # An exporter cannot count the parts of a batch of any size.
        for t, z in enumerate([read] if read.shape[0] == games else read.split(games)):
            h, c = self._cell(z, state)
            outputs.append(h)
            state = torch.cat([h, c], dim=1)
            if ended is not None:
                state = state.masked_fill(ended[t, :, None], 0.0)
        h = torch.cat(outputs)
        return self.policy(h), self.value(h).squeeze(1), state

    def _cell(self, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next h and c (K, cells) from W relu(fc) + b (K, 4 cells) and the states."""
        h, c = state.chunk(2, dim=1)
        i, f, g, o = (z + self.recurrence(h)).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
