"""Actor-critic losses: A3C (Mnih et al. 2016, sections 4 and 5.1), PPO (Schulman et al. 2017), GAE (2016)."""

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

    A terminated step bootstraps from 0, a truncated step from the value of the final observation, and the last step of
    the rollout from the value of the observation after it.

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


def gae_advantages(
    rewards: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    truncated_values: Tensor,
    values: Tensor,
    bootstrap: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16) over a rollout of T steps of K environments.

    A_t = delta_t + gamma lambda A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t. At the end of an episode A_{t+1} is
    0, and V_{t+1} is 0 if the episode terminated, the value of its final observation if it was truncated. With
    lambda = 1, A_t + V_t is `n_step_returns`.

    Args:
        rewards: (T, K)
        terminated: (T, K) bool.
        truncated: (T, K) bool; never true where `terminated` is.
        truncated_values: (T, K), see `n_step_returns`.
        values: (T, K) V of each step's observation.
        bootstrap: (K,) V of the observation after the last step.
        gamma: Discount.
        gae_lambda: lambda.

    Returns:
        (T, K)
    """
    following = torch.where(truncated, truncated_values, torch.cat([values[1:], bootstrap.unsqueeze(0)]))
    deltas = rewards + gamma * following.masked_fill(terminated, 0.0) - values
    carried = (gamma * gae_lambda) * (~(terminated | truncated)).to(values.dtype)
    advantages = torch.empty_like(rewards)
    advantage = torch.zeros_like(bootstrap)
    for t in reversed(range(rewards.shape[0])):
        advantage = deltas[t] + carried[t] * advantage
        advantages[t] = advantage
    return advantages


def log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """Log pi(a|s): (B, A), (B,) int64 -> (B,)."""
    return logits.log_softmax(1).gather(1, actions.unsqueeze(1)).squeeze(1)


def policy_loss(logits: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
    """-log pi(a|s) (R - V), per sample; the advantage is detached.

    Args:
        logits: (B, A)
        actions: (B,) int64.
        advantages: (B,) R - V.

    Returns:
        (B,)
    """
    return -log_prob(logits, actions) * advantages.detach()


def clipped_policy_loss(
    logits: Tensor, actions: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float
) -> Tensor:
    """-min(r A, clip(r, 1 - eps, 1 + eps) A) with r = pi(a|s) / pi_old(a|s) (PPO, eq. 7), per sample.

    Args:
        logits: (B, A)
        actions: (B,) int64.
        old_log_probs: (B,) log pi_old(a|s), constants.
        advantages: (B,) constants.
        clip_range: eps.

    Returns:
        (B,)
    """
    ratio = (log_prob(logits, actions) - old_log_probs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def entropy(logits: Tensor) -> Tensor:
    """H(pi(.|s)) in nats, per sample: (B, A) -> (B,)."""
    log_probs = logits.log_softmax(1)
    return -(log_probs.exp() * log_probs).sum(1)


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """1/2 (R - V)^2, per sample: (B,), (B,) -> (B,)."""
    return 0.5 * (returns.detach() - values).square()
