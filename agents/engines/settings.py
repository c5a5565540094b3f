"""What the algorithms add to the common settings. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from kfrl.config import Count, Fraction, Positive


@dataclass(frozen=True)
class PPOConfig:
    """What --algo ppo adds: a clipped objective, several passes over a rollout, and GAE."""

    epochs: Count = 4
    """Passes over each rollout."""
    batch_size: Count = 256
    """Samples of a minibatch; divides envs x t_max."""
    clip_range: Positive = 0.1
    """The ratio of new to old probabilities is clipped to 1 -+ this."""
    gae_lambda: Fraction = 0.95
    """lambda of generalised advantage estimation; 1 is the Monte Carlo end."""


@dataclass(frozen=True)
class ACKTRConfig:
    """What --algo acktr adds: natural gradients by K-FAC."""

    trust_region: Positive = 1e-3
    """delta: lr^2 g^T F^-1 g of an update is at most this; its KL divergence is about half of it."""
    damping: Positive = 0.01
    """Added to every eigenvalue of the Fisher matrix."""
    stats_decay: Fraction = 0.99
    """Decay of the running averages of its factors."""
    inverse_period: Count = 20
    """Updates between two eigen-decompositions of the factors."""
    fisher_samples: Count = 160
    """Observations of each rollout that the factors are estimated on."""
