"""Play that collects observations of a game, to fit and to fold links."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.rollout import sample
from envs.atari import AtariEnvs
from envs.protocols import Protocol
from kfrl.machine import cores

GAMES = 32
"""Number of environments."""
EVERY = 4
"""Steps of each game between two kept observations."""
AT_RANDOM = 0.1
"""Share of random actions, so that the observations are more diverse than those of the policy alone."""


def observe(protocol: Protocol, count: int, policy: Callable[[Tensor], Tensor] | None, seed: int) -> Tensor:
    """Play `steps_for(count)` steps and keep every fourth observation: (at least `count`, stack, H, W) uint8.

    Args:
        protocol: The game and its rules.
        count: Number of observations, rounded up to a multiple of the environments.
        policy: (B, stack, H, W) uint8 -> logits (B, A); without one, random play.
        seed: Seed of the games and the actions.
    """
    seen: NDArray[np.uint8] | None = None
    for index, obs in enumerate(play(protocol, count, policy, seed)):
        if seen is None:
            # Not a list that is joined at the end, which would take twice the memory.
            seen = np.empty((steps_for(count) // EVERY, *obs.shape[1:]), np.uint8)
        seen[index * len(obs) : (index + 1) * len(obs)] = obs
    assert seen is not None
    return torch.from_numpy(seen)


def play(
    protocol: Protocol, count: int, policy: Callable[[Tensor], Tensor] | None, seed: int
) -> Iterator[NDArray[np.uint8]]:
    """Play, and yield the observations of `observe` step by step, (games, stack, H, W) each."""
    games = min(GAMES, count)
    envs = AtariEnvs(protocol, games, num_threads=min(cores(), games))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    obs = envs.reset(seed=seed)
    for step in range(1, steps_for(count) // games + 1):
        actions = rng.integers(len(envs.actions), size=games)
        if policy is not None:
            with torch.no_grad():
                chosen = sample(policy(torch.from_numpy(obs)), generator).numpy()
            actions = np.where(rng.random(games) < AT_RANDOM, actions, chosen)
        obs = envs.step(actions).obs
        if step % EVERY == 0:
            yield obs.copy()


def steps_for(count: int) -> int:
    """The number of agent steps for `count` observations."""
    games = max(1, min(GAMES, count))
    return EVERY * games * -(-count // games)
