"""What goes from the games to the losses: samples, and what the net makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from envs.atari import Episode

Context = tuple[Tensor, ...]
"""What a method computes once per observation and reuses in the update, e.g. frozen teachers' features."""


def joined(contexts: Sequence[Context]) -> Context:
    """The contexts of several steps as one: a copy, which an update from the acting passes' own graph seldom needs."""
    if len(contexts) == 1:
        return contexts[0]
    return tuple(torch.cat(parts) for parts in zip(*contexts, strict=True))


@dataclass(frozen=True)
class Output:
    """What a net says of B observations."""

    logits: Tensor
    """(B, A)"""
    values: Tensor
    """(B,)"""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What else of the same pass the method's rewards and losses read, by name: (B, ...) each."""

    @property
    def has_graph(self) -> bool:
        """Whether gradients can go back through it."""
        return self.values.requires_grad

    @classmethod
    def joined(cls, outputs: Sequence[Output]) -> Output:
        """The outputs of several steps as one."""
        return cls(
            torch.cat([output.logits for output in outputs]),
            torch.cat([output.values for output in outputs]),
            {name: torch.cat([output.extras[name] for output in outputs]) for name in outputs[0].extras},
        )


@dataclass(frozen=True)
class Batch:
    """B samples: T steps of K games, flattened, or a minibatch of them."""

    obs: Tensor
    """(B, stack, H, W) uint8"""
    contexts: Sequence[Context]
    """Of the steps, or of all samples at once."""
    actions: Tensor
    """(B,) int64"""
    output: Output
    """Of the net that acted; in the hooks of an update that of the net that learns, with gradient."""
    episodes: tuple[Episode, ...]
    """The games that ended, with raw scores."""
    num_envs: int
    """K. Losses are summed over time and averaged over environments: `loss.sum() / num_envs`."""
    previous_logits: Tensor | None = None
    """(n, A) of the previous iteration's policy on the first n samples; there is none in the first iteration."""
    state: Tensor | None = None
    """(K, S) of a recurrent net, before the first of the T steps."""
    ended: Tensor | None = None
    """(T, K) bool, whether an episode ended with a step; for a recurrent net."""

    @property
    def context(self) -> Context:
        """Of all B samples."""
        return joined(self.contexts)

    @property
    def logits(self) -> Tensor:
        """Of the output: (B, A)."""
        return self.output.logits

    @property
    def values(self) -> Tensor:
        """Of the output: (B,)."""
        return self.output.values


@dataclass(frozen=True, kw_only=True)
class Rollout(Batch):
    """T steps of K games, with what the returns are made of."""

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
