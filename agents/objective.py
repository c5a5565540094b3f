"""The actor-critic objective of a rollout, by named terms; a method adds its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from agents.config import TrainConfig
from agents.methods.base import AnyMethod, Batch, Context, joined
from agents.rollout import Rollout
from envs.atari import Episode
from kfrl.losses.actor_critic import (
    clipped_policy_loss,
    entropy,
    gae_advantages,
    log_prob,
    n_step_returns,
    policy_loss,
    value_loss,
)


def a3c_terms(
    method: AnyMethod, net: nn.Module, rollout: Rollout, progress: float, config: TrainConfig
) -> dict[str, Tensor]:
    """Every term of the objective of A3C and A2C by name, weighted: their own and the method's.

    Summed over the rollout's steps, as A3C does, and averaged over its environments, so that a worker with K games
    has the mean gradient of K workers with one.
    """
    num_envs = rollout.actions.shape[1]
    obs = rollout.obs.flatten(0, 1)
    contexts = rollout.contexts
    if rollout.outputs is None:
        contexts = (joined(contexts),)
    logits, values = rollout.outputs or method.forward(net, obs, contexts[0])
    batch = Batch(obs, contexts, logits, values, rollout.episodes, num_envs, rollout.previous_logits)
    returns = n_step_returns(
        method.rewards(net, batch, rollout.actions, rollout.rewards),
        rollout.terminated,
        rollout.truncated,
        rollout.truncated_values,
        rollout.bootstrap,
        config.gamma,
    ).flatten()
    advantages = returns - values.detach()
    terms = {
        "policy": policy_loss(logits, rollout.actions.flatten(), advantages).sum() / num_envs,
        "value": config.shape.value_loss_coef * value_loss(values, returns).sum() / num_envs,
        "entropy": -config.entropy_coef * entropy(logits).sum() / num_envs,
    }
    return method.rl_terms(terms) | method.losses(net, batch, progress)


@dataclass(frozen=True)
class Samples:
    """A rollout as PPO's minibatches are drawn from it: B = T K samples, constants."""

    obs: Tensor
    """(B, stack, H, W) uint8"""
    context: Context
    actions: Tensor
    """(B,) int64"""
    logits: Tensor
    """(B, A) of the policy that acted."""
    log_probs: Tensor
    """(B,) its log pi(a|s)."""
    advantages: Tensor
    """(B,)"""
    returns: Tensor
    """(B,)"""

    @classmethod
    def of(cls, rollout: Rollout, config: TrainConfig) -> Samples:
        """Flatten a rollout and estimate its advantages."""
        values = rollout.values.view_as(rollout.rewards)
        advantages = gae_advantages(
            rollout.rewards,
            rollout.terminated,
            rollout.truncated,
            rollout.truncated_values,
            values,
            rollout.bootstrap,
            config.gamma,
            config.ppo.gae_lambda,
        )
        actions = rollout.actions.flatten()
        return cls(
            obs=rollout.obs.flatten(0, 1),
            context=joined(rollout.contexts),
            actions=actions,
            logits=rollout.logits,
            log_probs=log_prob(rollout.logits, actions),
            advantages=advantages.flatten(),
            returns=(advantages + values).flatten(),
        )

    def __len__(self) -> int:
        """B."""
        return len(self.actions)

    def pick(self, indices: Tensor) -> Samples:
        """The samples at `indices`."""
        return Samples(
            self.obs[indices],
            tuple(part[indices] for part in self.context),
            self.actions[indices],
            self.logits[indices],
            self.log_probs[indices],
            self.advantages[indices],
            self.returns[indices],
        )


def ppo_terms(
    method: AnyMethod,
    net: nn.Module,
    samples: Samples,
    episodes: tuple[Episode, ...],
    progress: float,
    config: TrainConfig,
) -> dict[str, Tensor]:
    """Every term of PPO's objective on one minibatch by name, weighted: its own and the method's, means over samples.

    Advantages are normalised in each minibatch, and the clip range falls linearly with the run (Schulman et al. 2017,
    table 5).
    """
    logits, values = method.forward(net, samples.obs, samples.context)
    advantages = (samples.advantages - samples.advantages.mean()) / (samples.advantages.std() + 1e-8)
    clip_range = config.ppo.clip_range * (1.0 - progress)
    policy = clipped_policy_loss(logits, samples.actions, samples.log_probs, advantages, clip_range)
    terms = {
        "policy": policy.mean(),
        "value": config.shape.value_loss_coef * value_loss(values, samples.returns).mean(),
        "entropy": -config.entropy_coef * entropy(logits).mean(),
    }
    # One "environment" a sample makes the method's sums over time and means over environments plain means.
    batch = Batch(samples.obs, (samples.context,), logits, values, episodes, len(samples), samples.logits)
    return method.rl_terms(terms) | method.losses(net, batch, progress)
