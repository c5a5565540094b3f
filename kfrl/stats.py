"""Statistics of raw scores: interquartile mean, bootstrap intervals, human-normalised scores."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]

REFERENCE_SOURCE = "dqn_zoo atari_data.py (google-deepmind, Apache-2.0): no-op starts, 108,000-frame cap"
"""Where the random and human scores come from."""


@dataclass(frozen=True)
class Reference:
    """What a game's scores are normalised by, raw points."""

    random: float
    """A uniformly random agent."""
    human: float
    """A professional human tester."""


@dataclass(frozen=True)
class Summary:
    """A sample of raw scores in numbers. What a single score cannot tell is None."""

    n: int
    mean: float
    std: float | None
    """Of the sample, n - 1 in the denominator."""
    standard_error: float | None
    """Of the mean."""
    median: float
    min: float
    max: float
    ci_low: float | None
    """Lower end of the mean's bootstrap interval."""
    ci_high: float | None
    iqm: float


def mean(scores: ArrayLike) -> Scores:
    """Mean over the last axis."""
    return np.asarray(np.asarray(scores, dtype=np.float64).mean(axis=-1))


def iqm(scores: ArrayLike) -> Scores:
    """Interquartile mean over the last axis: the mean without the lowest and the highest quarter.

    A quarter that is not whole is rounded down, as in Agarwal et al. 2021 and their rliable, who take it over
    all runs and games at once: flatten first.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=-1)
    cut = ordered.shape[-1] // 4
    return mean(ordered[..., cut : ordered.shape[-1] - cut])


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[Scores], Scores] = mean,
    reps: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic`.

    Args:
        scores: (n,), n >= 2.
        statistic: (reps, n) resampled scores to (reps,).
        reps: How often the scores are drawn anew, with replacement.
        confidence: Between 0 and 1.
        seed: Of the draws.

    Raises:
        ValueError: fewer than two scores, which have no interval.
    """
    sample = np.asarray(scores, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2:
        raise ValueError(f"Expected at least two scores of shape (n,), got shape {sample.shape}.")
    drawn = np.random.default_rng(seed).choice(sample, size=(reps, len(sample)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(drawn), [tail, 1 - tail])
    return float(low), float(high)


def summarise(scores: ArrayLike, *, reps: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Summary:
    """Describe scores (n,); see `bootstrap_interval` for the rest.

    Raises:
        ValueError: no scores.
    """
    sample = np.asarray(scores, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"Expected at least one score of shape (n,), got shape {sample.shape}.")
    several = len(sample) > 1
    std = float(sample.std(ddof=1)) if several else None
    low, high = bootstrap_interval(sample, mean, reps, confidence, seed) if several else (None, None)
    return Summary(
        n=len(sample),
        mean=float(sample.mean()),
        std=std,
        standard_error=None if std is None else std / len(sample) ** 0.5,
        median=float(np.median(sample)),
        min=float(sample.min()),
        max=float(sample.max()),
        ci_low=low,
        ci_high=high,
        iqm=float(iqm(sample)),
    )


@functools.cache
def reference_scores() -> Mapping[str, Reference]:
    """The 57 games that have random and human scores, by ROM name."""
    lines = Path(__file__).with_name("atari57.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return MappingProxyType({row["rom"]: Reference(float(row["random"]), float(row["human"])) for row in rows})


def human_normalised(score: float, rom: str) -> float | None:
    """(score - random) / (human - random): 0 is chance, 1 the human. None for a game without an entry."""
    reference = reference_scores().get(rom)
    if reference is None:
        return None
    return (score - reference.random) / (reference.human - reference.random)
