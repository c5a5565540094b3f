"""Matching of actions by name, between nets with different sets or orders of actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def in_order(logits: Tensor, actions: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Put logits of `actions` into the order of `wanted`: (B, A) -> (B, W).

    A wanted action that is not in `actions` gets -inf, so that it is never taken; other actions are left out.
    """
    order = [list(actions).index(name) if name in actions else -1 for name in wanted]
    return torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)[:, order]


def epsilon_greedy(values: Tensor, epsilon: float) -> Tensor:
    """Log-probabilities of the epsilon-greedy policy.

    Args:
        values: (B, A) Q values; -inf for an action that is not available.
        epsilon: Probability of a random action.

    Returns:
        (B, A)
    """
    possible = values.isfinite().to(values.dtype)
    best = torch.nn.functional.one_hot(values.argmax(1), values.shape[1])
    return ((1 - epsilon) * best + epsilon * possible / possible.sum(1, keepdim=True)).log()
