"""Returns of policies from the same starts, played step by step, so that the caller can do other work in between."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import torch
from torch import Tensor

from agents.rollout import sample
from envs.atari import AtariEnvs

KEEP_EVERY = 8
"""Steps between two kept observations."""


@torch.no_grad()
def returns(
    policy: Callable[[Tensor], Tensor], envs: AtariEnvs, steps: int, seed: int, seen: list[Tensor] | None = None
) -> Generator[None, None, Tensor]:
    """Play a game in each of K environments, to its end or for `steps` steps; yields after each step.

    With the same seed, the starts and the random numbers for the actions are the same, so that differences between
    policies are paired.

    Args:
        policy: (K, stack, H, W) uint8 -> logits (K, A).
        envs: K games.
        steps: Most steps of a game.
        seed: Seed of the starts and of the sampled actions.
        seen: List to which the observations of every eighth step are appended.

    Returns:
        (K,) sums of the learner's rewards over all lives.
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
