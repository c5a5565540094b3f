"""Collecting t_max steps of K games with a frozen copy of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.methods.base import Context, Method
from envs.atari import AtariEnvs, Episode, Transition


@dataclass(frozen=True)
class Rollout:
    """T steps of K games."""

    obs: Tensor
    """(T, K, stack, H, W) uint8"""
    actions: Tensor
    """(T, K) int64"""
    rewards: Tensor
    """(T, K) as the learner sees them."""
    terminated: Tensor
    """(T, K) bool"""
    truncated: Tensor
    """(T, K) bool"""
    truncated_values: Tensor
    """(T, K) V of the observation that the cap cut off, where truncated."""
    bootstrap: Tensor
    """(K,) V of the observation after the last step."""
    context: Context
    """(T K, ...) what the method computed per observation."""
    episodes: tuple[Episode, ...]
    """The games that ended, with raw scores."""


class Collector:
    """Plays on from where the last rollout ended."""

    def __init__(
        self,
        envs: AtariEnvs,
        method: Method,
        net: nn.Module,
        t_max: int,
        seed: int,
    ) -> None:
        """Start the games.

        Args:
            envs: K games.
            method: Whose `observe` and `forward` act.
            net: The worker's own copy.
            t_max: T.
            seed: Of the games and of the sampled actions.
        """
        self.envs, self.method, self.net, self.t_max = envs, method, net, t_max
        self._generator = torch.Generator().manual_seed(seed)
        self._obs = torch.from_numpy(envs.reset(seed))

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Play T steps with sampled actions."""
        obs, contexts, actions, transitions = [], [], [], []
        values = torch.zeros(self.t_max, self.envs.num_envs)
        for t in range(self.t_max):
            context = self.method.observe(self.net, self._obs)
            logits, _ = self.method.forward(self.net, self._obs, context)
            action = sample(logits, self._generator)
            transition = self.envs.step(action.numpy())
            if transition.truncated.any():
                values[t] = self._value(torch.from_numpy(transition.final_obs))
            obs.append(self._obs)
            contexts.append(context)
            actions.append(action)
            transitions.append(transition)
            self._obs = torch.from_numpy(transition.obs)
        return Rollout(
            obs=torch.stack(obs),
            actions=torch.stack(actions),
            rewards=_stack(transitions, "rewards"),
            terminated=_stack(transitions, "terminated"),
            truncated=_stack(transitions, "truncated"),
            truncated_values=values,
            bootstrap=self._value(self._obs),
            context=tuple(torch.cat(parts) for parts in zip(*contexts, strict=True)),
            episodes=tuple(episode for step in transitions for episode in step.episodes),
        )

    def _value(self, obs: Tensor) -> Tensor:
        return self.method.forward(self.net, obs, self.method.observe(self.net, obs))[1]


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw actions from softmax(logits) by the Gumbel-max rule: (K, A) -> (K,) int64.

    Unlike `torch.multinomial` it passes non-finite logits on; the update that follows drops and counts them.
    """
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(1)


def _stack(transitions: Sequence[Transition], field: str) -> Tensor:
    return torch.stack([torch.from_numpy(getattr(step, field)) for step in transitions])
