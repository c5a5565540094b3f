"""The actor-critic objective of a rollout, by named terms; a method adds its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from agents.batch import Batch, Output, Rollout
from agents.config import TrainConfig
from agents.methods.base import AnyMethod
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

B = TypeVar("B", bound=Batch)


def with_gradient(method: AnyMethod, net: nn.Module, batch: B) -> B:
    """The batch with an output of `net` that has its graph: that of the acting passes if they kept it, or a new one."""
    if batch.output.has_graph:
        return batch
    context = batch.context
    if batch.state is None:
        output = method.forward(net, batch.obs, context)
    else:
        output, _ = method.forward_with_state(net, batch.obs, context, batch.state, batch.ended)
    return replace(batch, contexts=(context,), output=output)


def a3c_terms(
    method: AnyMethod, net: nn.Module, rollout: Rollout, progress: float, config: TrainConfig
) -> dict[str, Tensor]:
    """Every term of the objective of A3C and A2C by name, weighted: their own and the method's.

    Summed over the rollout's steps, as A3C does, and averaged over its environments, so that a worker with K games
    has the mean gradient of K workers with one.

    Args:
        method: Adds its terms.
        net: That learns.
        rollout: As `with_gradient` gives it.
        progress: Share of the phase that is done.
        config: The run's settings.
    """
    logits, values, num_envs = rollout.logits, rollout.values, rollout.num_envs
    returns = n_step_returns(
        method.rewards(net, rollout),
        rollout.terminated,
        rollout.truncated,
        rollout.truncated_values,
        rollout.bootstrap,
        config.gamma,
    ).flatten()
    advantages = returns - values.detach()
    terms = {
        "policy": policy_loss(logits, rollout.actions, advantages).sum() / num_envs,
        "value": config.shape.value_loss_coef * value_loss(values, returns).sum() / num_envs,
        "entropy": -config.entropy_coef * entropy(logits).sum() / num_envs,
    }
    return method.rl_terms(terms) | method.losses(net, rollout, progress)


@dataclass(frozen=True, kw_only=True)
class Samples(Batch):
    """A rollout as PPO's minibatches are drawn from it; `previous_logits` are of the policy that acted."""

    log_probs: Tensor
    """(B,) log pi(a|s) of the policy that acted."""
    advantages: Tensor
    """(B,)"""
    returns: Tensor
    """(B,)"""

    @classmethod
    def of(cls, rollout: Rollout, rewards: Tensor, config: TrainConfig) -> Samples:
        """Flatten a rollout and estimate its advantages from the method's `rewards` (T, K)."""
        values = rollout.values.view_as(rewards)
        advantages = gae_advantages(
            rewards,
            rollout.terminated,
            rollout.truncated,
            rollout.truncated_values,
            values,
            rollout.bootstrap,
            config.gamma,
            config.ppo.gae_lambda,
        )
        return cls(
            obs=rollout.obs,
            contexts=(rollout.context,),
            actions=rollout.actions,
            output=rollout.output,
            episodes=rollout.episodes,
            num_envs=rollout.num_envs,
            previous_logits=rollout.logits,
            log_probs=log_prob(rollout.logits, rollout.actions),
            advantages=advantages.flatten(),
            returns=(advantages + values).flatten(),
            state=rollout.state,
            ended=rollout.ended,
        )

    def shuffled(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The indices of all samples in a new random order, `size` at a time.

        For a recurrent net, those of all steps of some games in their order, with the indices of these games.
        """
        device = self.actions.device
        if self.ended is None:
            yield from ((indices, None) for indices in torch.randperm(len(self.actions)).to(device).split(size))
            return
        steps, games = self.ended.shape
        for chosen in torch.randperm(games).to(device).split(size // steps):
            yield (torch.arange(steps, device=device)[:, None] * games + chosen).flatten(), chosen

    def pick(self, indices: Tensor, episodes: tuple[Episode, ...] = (), games: Tensor | None = None) -> Samples:
        """The samples at `indices`, as a minibatch: losses are means over its samples.

        For a recurrent net, they and `games` are from `shuffled`.

        One "environment" a sample makes the method's sums over time and means over environments plain means.
        """
        logits, values = self.logits[indices], self.values[indices]
        return Samples(
            obs=self.obs[indices],
            contexts=(tuple(part[indices] for part in self.context),),
            actions=self.actions[indices],
            output=Output(logits, values),
            episodes=episodes,
            num_envs=len(indices),
            previous_logits=logits,
            log_probs=self.log_probs[indices],
            advantages=self.advantages[indices],
            returns=self.returns[indices],
            state=None if self.state is None else self.state[games],
            ended=None if self.ended is None else self.ended[:, games],
        )


def ppo_terms(
    method: AnyMethod, net: nn.Module, samples: Samples, progress: float, config: TrainConfig
) -> dict[str, Tensor]:
    """Every term of PPO's objective on one minibatch by name, weighted: its own and the method's, means over samples.

    Advantages are normalised in each minibatch, and the clip range falls linearly with the run (Schulman et al. 2017,
    table 5). `samples` are as `with_gradient` gives them.
    """
    logits, values = samples.logits, samples.values
    advantages = (samples.advantages - samples.advantages.mean()) / (samples.advantages.std() + 1e-8)
    clip_range = config.ppo.clip_range * (1.0 - progress)
    policy = clipped_policy_loss(logits, samples.actions, samples.log_probs, advantages, clip_range)
    terms = {
        "policy": policy.mean(),
        "value": config.shape.value_loss_coef * value_loss(values, samples.returns).mean(),
        "entropy": -config.entropy_coef * entropy(logits).mean(),
    }
    return method.rl_terms(terms) | method.losses(net, samples, progress)
