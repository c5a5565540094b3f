"""Returns of policies from the same starts, a step at a time, so that whoever waits can do other things meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import torch
from torch import Tensor

from agents.rollout import sample
from envs.atari import AtariEnvs

KEEP_EVERY = 8
"""Steps between two of the observations that are kept."""


@torch.no_grad()
def returns(
    policy: Callable[[Tensor], Tensor], envs: AtariEnvs, steps: int, seed: int, seen: list[Tensor] | None = None
) -> Generator[None, None, Tensor]:
    """Play a game in each of K environments, to its end or for `steps` steps; a turn of the generator is one step.

    Same seed, same starts and same random numbers for the actions: differences between policies are paired.

    Args:
        policy: (K, stack, H, W) uint8 -> logits (K, A).
        envs: K games.
        steps: At most, of each game.
        seed: Of the starts and of the sampled actions.
        seen: Gets every eighth step's observations.

    Returns:
        (K,) sums of the rewards as the learner sees them, over all lives.
    """
    generator = torch.Generator().manual_seed(seed)
    obs, total = envs.reset(seed), np.zeros(envs.num_envs)
    playing = np.ones(envs.num_envs, dtype=bool)
    for step in range(steps):
        seen_now = torch.from_numpy(obs)
        if seen is not None and step % KEEP_EVERY == 0:
            seen.append(seen_now[torch.from_numpy(playing)].clone())
        transition = envs.step(sample(policy(seen_now).cpu(), generator).numpy())
        total += transition.rewards * playing
        playing[[episode.env for episode in transition.episodes]] = False
        obs = transition.obs
        if not playing.any():
            break
        yield
    return torch.from_numpy(total)
