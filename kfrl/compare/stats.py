"""Statistics of raw scores: interquartile mean, bootstrap intervals, human-normalised scores."""

from __future__ import annotations

import csv
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
Strata = Sequence[ArrayLike]
"""Scores by game, (..., runs) each. The number of runs may differ between games."""

REFERENCE_FRAMES = 108_000
"""The frame cap of the games behind the random and human scores."""
REFERENCE_SOURCE = f"dqn_zoo atari_data.py (google-deepmind, Apache-2.0): no-op starts, {REFERENCE_FRAMES:,}-frame cap"
"""The source of the random and human scores."""
EXACT = 100_000
"""Most ways to divide the runs over two arms that are all tried, for an exact p; if there are more, this many are
sampled."""


@dataclass(frozen=True)
class ReferenceScores:
    """The random and the human score of a game, raw points, for human-normalised scores."""

    random: float
    """Score of a uniformly random agent."""
    human: float
    """Score of a professional human tester."""


@dataclass(frozen=True)
class Summary:
    """Statistics of a sample of raw scores; those that need two scores are None for a single score."""

    n: int
    mean: float
    std: float | None
    """Standard deviation, n - 1 in the denominator."""
    standard_error: float | None
    """Standard error of the mean."""
    median: float
    min: float
    max: float
    ci_low: float | None
    """Lower end of the mean's bootstrap interval; None also if all scores are equal."""
    ci_high: float | None
    iqm: float


def mean(scores: ArrayLike) -> Scores:
    """Mean over the last axis."""
    return np.asarray(np.asarray(scores, dtype=np.float64).mean(axis=-1))


def iqm(scores: ArrayLike) -> Scores:
    """Interquartile mean over the last axis: the mean without the lowest and the highest quarter.

    The size of a quarter is rounded down, as in Agarwal et al. 2021 and their rliable. They take the mean over all
    runs and games at once: flatten the scores first.
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
        reps: Number of resamples, drawn with replacement.
        confidence: Between 0 and 1.
        seed: Seed of the resamples.

    Raises:
        ValueError: fewer than two scores.
    """
    return stratified_interval([scores], lambda drawn: statistic(drawn[0]), reps, confidence, seed)


def stratified_interval(
    strata: Strata,
    statistic: Callable[[Sequence[Scores]], Scores],
    reps: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of several samples, each resampled by itself.

    With a game's runs as a stratum it is the interval of Agarwal et al. 2021 and their rliable.

    Args:
        strata: (n_i,) each, n_i >= 2.
        statistic: One (reps, n_i) of resampled scores for each stratum, to (reps,).
        reps: Number of resamples, drawn with replacement.
        confidence: Between 0 and 1.
        seed: Seed of the resamples.

    Raises:
        ValueError: a stratum has fewer than two scores.
    """
    samples = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    for sample in samples:
        if sample.ndim != 1 or len(sample) < 2:
            raise ValueError(f"Expected at least two scores of shape (n,), got shape {sample.shape}.")
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(sample, size=(reps, len(sample))) for sample in samples]
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(drawn), [tail, 1 - tail])
    return float(low), float(high)


def _game_means(strata: Strata) -> Scores:
    """Mean over the runs of each game, (games, ...)."""
    return np.stack([mean(stratum) for stratum in strata])


def mean_over_games(strata: Strata) -> Scores:
    """Mean over games of the mean over a game's runs."""
    return np.asarray(_game_means(strata).mean(axis=0))


def median_over_games(strata: Strata) -> Scores:
    """Median over games of the mean over a game's runs."""
    return np.asarray(np.median(_game_means(strata), axis=0))


def iqm_over_games(strata: Strata) -> Scores:
    """Interquartile mean of all runs of all games at once; a game with more runs weighs more."""
    return iqm(np.concatenate([np.asarray(stratum, dtype=np.float64) for stratum in strata], axis=-1))


def optimality_gap(strata: Strata, target: float = 1.0) -> Scores:
    """`target` minus the mean over games of min(score, target), the mean shortfall below `target`."""
    capped = [np.minimum(np.asarray(stratum, dtype=np.float64), target) for stratum in strata]
    return np.asarray(target - mean_over_games(capped))


def probability_of_improvement(ours: Strata, theirs: Strata) -> Scores:
    """Mean over games of P(a run of ours > a run of theirs) + 1/2 P(they are equal), Mann and Whitney's U / (n m).

    Args:
        ours: (..., n_i) for each game.
        theirs: (..., m_i) for each game, in the same order.
    """
    chances = []
    for our, their in zip(ours, theirs, strict=True):
        x = np.asarray(our, dtype=np.float64)[..., :, None]
        y = np.asarray(their, dtype=np.float64)[..., None, :]
        chances.append(((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(chances, axis=0))


def permutation_p(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Two-sided p value of the difference of two means, by Fisher's permutation test.

    Scores (n,) and (m,), at least 2 each.

    p is the share, among all ways to divide the scores over the two arms, of those with a difference at least as
    extreme; exact up to `EXACT` ways. The smallest p of 3 against 3 scores is 2 / 20.
    """
    pool = np.concatenate([np.asarray(scores, dtype=np.float64) for scores in (ours, theirs)])
    n = np.size(ours)
    exact = math.comb(len(pool), n) <= EXACT
    # scipy.stats.permutation_test does the same, but its import takes longer than a comparison of 30 runs.
    if exact:
        divisions = np.array(list(itertools.combinations(pool, n)))
    else:
        divisions = np.random.default_rng(0).permuted(np.tile(pool, (EXACT, 1)), axis=1)[:, :n]
    # The difference of the means grows with the sum of the first arm, so the sums give the same p.
    sums, found, rounding = divisions.sum(axis=1), pool[:n].sum(), 1e-12 * np.abs(pool).sum()
    tail = min(int((sums <= found + rounding).sum()), int((sums >= found - rounding).sum()))
    # The division that was found counts as one of the sampled ones, so that p is never 0.
    return min(1.0, 2 * tail / len(sums) if exact else 2 * (tail + 1) / (len(sums) + 1))


@dataclass(frozen=True)
class Top:
    """The mean of the best k of n runs, as papers report it, and its expected value for n runs of equal quality."""

    n: int
    k: int
    mean: float
    """Mean of all runs."""
    std: float
    """Standard deviation of all runs, n - 1 in the denominator."""
    top: float
    """Mean of the best k."""
    by_chance: float
    """Expected value of `top` if all n runs are draws from one normal distribution with this mean and deviation."""


def top_of(scores: ArrayLike, k: int = 3, higher_is_better: bool = True) -> Top:
    """The statistics of the best `k` of (n,) scores, n > k."""
    sign = 1.0 if higher_is_better else -1.0
    ordered = np.sort(sign * np.asarray(scores, dtype=np.float64))
    n, middle, std = len(ordered), float(ordered.mean()), float(ordered.std(ddof=1))
    by_chance = middle + std * chance_of_top(n, k)
    return Top(n, k, sign * middle, std, sign * float(ordered[-k:].mean()), sign * by_chance)


@functools.cache
def chance_of_top(n: int, k: int) -> float:
    """Expected mean of the `k` largest of `n` standard normal draws: 1.58 for 3 of 25.

    A draw x is among the k largest if fewer than k of the n - 1 other draws are above x.
    """
    from scipy.integrate import quad
    from scipy.stats import binom, norm

    def density(x: float) -> float:
        return float(x * norm.pdf(x) * binom.cdf(k - 1, n - 1, norm.sf(x)))

    return float(quad(density, -10.0, 10.0, limit=200)[0]) * n / k


def curve_height(steps: ArrayLike, values: ArrayLike, end: float) -> float:
    """Mean height of a curve: the area under its piecewise linear graph from its first step to `end`, over the length.

    Args:
        steps: (n,) ascending, not all at or beyond `end`.
        values: (n,)
        end: The step at which the area ends; after its last point the curve is constant.
    """
    at, height = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    inside = at < end
    x = np.append(at[inside], end)
    y = np.append(height[inside], np.interp(end, at, height))
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (end - x[0]))


def first_reached(steps: ArrayLike, values: ArrayLike, threshold: float) -> float | None:
    """The first step (n,) whose value (n,) is at least `threshold`, or None."""
    reached = np.flatnonzero(np.asarray(values) >= threshold)
    return float(np.asarray(steps)[reached[0]]) if len(reached) else None


def summarise(scores: ArrayLike, *, reps: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Summary:
    """Statistics of scores (n,); see `bootstrap_interval` for the other arguments.

    Raises:
        ValueError: no scores.
    """
    sample = np.asarray(scores, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"Expected at least one score of shape (n,), got shape {sample.shape}.")
    several = len(sample) > 1
    std = float(sample.std(ddof=1)) if several else None
    varied = sample.min() < sample.max()
    low, high = bootstrap_interval(sample, mean, reps, confidence, seed) if varied else (None, None)
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
def reference_scores() -> Mapping[str, ReferenceScores]:
    """The random and human scores of the 57 games of Atari-57, by ROM name."""
    lines = Path(__file__).with_name("atari57.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return MappingProxyType({row["rom"]: ReferenceScores(float(row["random"]), float(row["human"])) for row in rows})


def reference_of(rom: str, max_frames: int) -> ReferenceScores | None:
    """The reference scores of a game; None for a game without an entry, or under another frame cap."""
    return reference_scores().get(rom) if max_frames == REFERENCE_FRAMES else None


def human_normalised(score: float, rom: str, max_frames: int = REFERENCE_FRAMES) -> float | None:
    """(score - random) / (human - random): 0 is a random agent, 1 the human. None where `reference_of` is None."""
    reference = reference_of(rom, max_frames)
    if reference is None:
        return None
    return (score - reference.random) / (reference.human - reference.random)
