"""Policies of nets; those of recurrent nets keep a state for each game."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.actions import epsilon_greedy, in_order
from envs.atari import Transition
from kfrl.nets import state_size

Policy = Callable[[Tensor], Tensor]
"""uint8 observations (K, stack, H, W) to logits (K, A); a `Recurrent` needs a `Player`."""

EPSILON = 0.01
"""Probability of a random action of a Q-network."""


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


def matched_policy(net: nn.Module, actions: Sequence[str], played: Sequence[str]) -> Policy:
    """The policy of a net in a game, whose logits are in the order of the game's actions.

    Actions are matched by name; an action that the net lacks is never taken, one that the game lacks is left out. The
    logits of an actor-critic are used unchanged. A Q-network acts epsilon-greedily with `EPSILON`, because Q values are
    not log-probabilities.

    Args:
        net: uint8 observations (K, stack, H, W) to logits (K, A) and values; a recurrent one has a `step`.
        actions: The net's A actions.
        played: The actions of the game.
    """
    greedy = getattr(net, "head", "") == "q"

    def adapted(logits: Tensor) -> Tensor:
        return in_order(epsilon_greedy(logits, EPSILON) if greedy else logits, actions, played)

    return policy_from(net, adapted)
