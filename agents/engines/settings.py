"""Settings of the algorithms. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass

from kfrl.config import Count, Fraction, Positive


@dataclass(frozen=True)
class PPOConfig:
    """Settings of --algo ppo: a clipped objective, several passes over a rollout, and GAE."""

    epochs: Count = 4
    """Passes over each rollout."""
    batch_size: Count = 256
    """Samples of a minibatch; must divide environments x t_max."""
    clip_range: Positive = 0.1
    """epsilon: the ratio of new to old probabilities is clipped to 1 -+ epsilon."""
    gae_lambda: Fraction = 0.95
    """lambda of generalised advantage estimation; 1 gives n-step returns."""


@dataclass(frozen=True)
class ACKTRConfig:
    """Settings of --algo acktr: natural gradients by K-FAC."""

    trust_region: Positive = 1e-3
    """delta, the upper bound of lr^2 g^T F^-1 g of an update; the KL divergence is about half of it."""
    damping: Positive = 0.01
    """Number added to every eigenvalue of the Fisher matrix."""
    stats_decay: Fraction = 0.99
    """Decay of the running averages of the factors."""
    inverse_period: Count = 20
    """Updates between two eigen-decompositions of the factors."""
    fisher_samples: Count = 160
    """Observations of each rollout from which the factors are estimated."""
