"""Match actions by name between nets whose logits have another order, or stand for other sets of actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def in_order(logits: Tensor, actions: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Put logits of `actions` into the order of `wanted`: (B, A) -> (B, W).

    An action that is not among `actions` gets -inf, so that it is never taken; one that is not wanted is left out.
    """
    order = [list(actions).index(name) if name in actions else -1 for name in wanted]
    return torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)[:, order]


def epsilon_greedy(values: Tensor, epsilon: float) -> Tensor:
    """Log-probabilities of taking the action of the greatest value, and any at random once in 1 / epsilon steps.

    Args:
        values: (B, A) Q values; -inf where an action cannot be taken.
        epsilon: Share of random actions.

    Returns:
        (B, A)
    """
    possible = values.isfinite().to(values.dtype)
    best = torch.nn.functional.one_hot(values.argmax(1), values.shape[1])
    return ((1 - epsilon) * best + epsilon * possible / possible.sum(1, keepdim=True)).log()
