"""Synthetic cases: RANDOM and MUNGE (Bucila et al. 2006), smearing (Breiman and Shang 1996)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Cases = NDArray[np.float64]
"""(cases, attributes): continuous values scaled to [0, 1], nominal ones as category codes."""
Mask = NDArray[np.bool_]
"""(attributes,): which are nominal."""


def random_cases(cases: Cases, count: int, generator: np.random.Generator) -> Cases:
    """RANDOM: draw each attribute independently from its observed values. Returns (count, attributes)."""
    rows = generator.integers(len(cases), size=(count, cases.shape[1]))
    return np.take_along_axis(cases, rows, axis=0)


def smear(cases: Cases, count: int, alter: float, generator: np.random.Generator) -> Cases:
    """Copy random cases, and replace each attribute with probability `alter` by that of another random case."""
    kept = cases[generator.integers(len(cases), size=count)]
    altered = generator.random(kept.shape) < alter
    return np.where(altered, random_cases(cases, count, generator), kept)


def munge(cases: Cases, nominal: Mask, swap: float, scale: float, generator: np.random.Generator) -> Cases:
    """One pass of MUNGE over all cases (n, d), n >= 2; nearest neighbours are those among the already changed cases.

    Args:
        cases: Not modified.
        nominal: Nominal attributes; their values are swapped, never drawn.
        swap: p, the probability that a pair swaps an attribute.
        scale: s; continuous values are drawn around the other case's with the deviation |e_a - e'_a| / s.
        generator: Of the draws.
    """
    changed: Cases = cases.copy()
    for index in range(len(changed)):
        other = _nearest(changed, index, nominal)
        chosen = generator.random(changed.shape[1]) < swap
        first, second = changed[index].copy(), changed[other].copy()
        deviation = np.where(nominal, 0.0, np.abs(first - second) / scale)
        changed[index] = np.where(chosen, generator.normal(second, deviation), first)
        changed[other] = np.where(chosen, generator.normal(first, deviation), second)
    return changed


def _nearest(cases: Cases, index: int, nominal: Mask) -> int:
    """The nearest other case: squared Euclidean distance (continuous) plus Hamming distance (nominal attributes)."""
    apart = cases - cases[index]
    distance = np.where(nominal, apart != 0, apart**2).sum(axis=1)
    distance[index] = np.inf
    return int(distance.argmin())
