"""Policies of nets; those of recurrent nets keep a state for each game."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.atari import Transition
from kfrl.nets import state_size

Policy = Callable[[Tensor], Tensor]
"""uint8 observations (K, stack, H, W) to logits (K, A); a `Recurrent` needs a `Player`."""


class Recurrent:
    """A policy with a state."""

    def __init__(self, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], size: int) -> None:
        """Keep `step`: observations (K, stack, H, W) and states (K, S) to logits (K, A) and the next states."""
        self.step, self.state_size = step, size

    def __call__(self, obs: Tensor) -> Tensor:
        """The logits (K, A) of the first observations of episodes."""
        return self.step(obs, torch.zeros(len(obs), self.state_size))[0]


class Player:
    """A policy in K games; the state of a recurrent one is zero at the start of each episode of a game.

    An episode ends where the learner's does: with the game, and with a life if the rules say so. The policy is then in
    the states that it was trained in.
    """

    def __init__(self, policy: Policy, games: int) -> None:
        """Start K episodes."""
        self._policy = policy
        self._states = torch.zeros(games, policy.state_size) if isinstance(policy, Recurrent) else None

    def logits(self, obs: Tensor, games: NDArray[np.int64]) -> Tensor:
        """The logits (n, A) in the n of the K games from which `obs` (n, stack, H, W) are."""
        if not isinstance(self._policy, Recurrent) or self._states is None:
            return self._policy(obs)
        playing = torch.from_numpy(games)
        logits, self._states[playing] = self._policy.step(obs, self._states[playing])
        return logits

    def see(self, transition: Transition) -> None:
        """Forget the states of episodes that the step has ended."""
        if self._states is not None:
            self._states[torch.from_numpy(transition.terminated | transition.truncated)] = 0.0


def policy_from(net: nn.Module, adapted: Callable[[Tensor], Tensor] = lambda logits: logits) -> Policy:
    """The policy of a net's logits, after `adapted`; the net gives logits and values."""
    if not state_size(net):
        return lambda obs: adapted(net(obs)[0])

    def step(obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        logits, _, after = cast(Any, net).step(obs, state)
        return adapted(logits), after

    return Recurrent(step, state_size(net))
