"""The advantage actor-critic losses of A3C (Mnih et al. 2016), sections 4 and 5.1."""

from __future__ import annotations

import torch
from torch import Tensor


def n_step_returns(
    rewards: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    truncated_values: Tensor,
    bootstrap: Tensor,
    gamma: float,
) -> Tensor:
    """Discounted returns R_t = r_t + gamma R_{t+1} over a rollout of T steps of K environments.

    A terminated step bootstraps 0. A truncated one bootstraps the value of the observation that the cap cut off, and
    the rollout's last step the value of the observation after it.

    Args:
        rewards: (T, K)
        terminated: (T, K) bool.
        truncated: (T, K) bool; never true where `terminated` is.
        truncated_values: (T, K) V of the final observation where `truncated`; ignored elsewhere.
        bootstrap: (K,) V of the observation after the last step.
        gamma: Discount.

    Returns:
        (T, K)
    """
    returns = torch.empty_like(rewards)
    following = bootstrap
    for t in reversed(range(rewards.shape[0])):
        following = torch.where(truncated[t], truncated_values[t], following)
        following = rewards[t] + gamma * following.masked_fill(terminated[t], 0.0)
        returns[t] = following
    return returns


def policy_loss(logits: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
    """-log pi(a|s) (R - V), per sample; the advantage is a constant here.

    Args:
        logits: (B, A)
        actions: (B,) int64.
        advantages: (B,) R - V.

    Returns:
        (B,)
    """
    log_probs = logits.log_softmax(1).gather(1, actions.unsqueeze(1)).squeeze(1)
    return -log_probs * advantages.detach()


def entropy(logits: Tensor) -> Tensor:
    """H(pi(.|s)) in nats, per sample: (B, A) -> (B,)."""
    log_probs = logits.log_softmax(1)
    return -(log_probs.exp() * log_probs).sum(1)


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """1/2 (R - V)^2, per sample: (B,), (B,) -> (B,)."""
    return 0.5 * (returns.detach() - values).square()
