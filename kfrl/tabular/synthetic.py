"""Cases that no one observed: RANDOM and MUNGE (Bucila et al. 2006), smearing (Breiman and Shang 1996)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Cases = NDArray[np.float64]
"""(cases, attributes): continuous ones scaled to [0, 1], nominal ones as codes."""
Mask = NDArray[np.bool_]
"""(attributes,): which are nominal."""


def random_cases(cases: Cases, count: int, generator: np.random.Generator) -> Cases:
    """RANDOM: each attribute by itself, drawn from its observed values. Returns (count, attributes)."""
    rows = generator.integers(len(cases), size=(count, cases.shape[1]))
    return np.take_along_axis(cases, rows, axis=0)


def smear(cases: Cases, count: int, alter: float, generator: np.random.Generator) -> Cases:
    """Copies of random cases, each attribute replaced with probability `alter` by that of another random case."""
    kept = cases[generator.integers(len(cases), size=count)]
    altered = generator.random(kept.shape) < alter
    return np.where(altered, random_cases(cases, count, generator), kept)


def munge(cases: Cases, nominal: Mask, swap: float, scale: float, generator: np.random.Generator) -> Cases:
    """One pass of MUNGE over all cases (n, d), n >= 2; the neighbours are those of the cases as they change.

    Args:
        cases: Left as they are.
        nominal: Their values are swapped, never invented.
        swap: p, the probability that a pair trades an attribute.
        scale: s; continuous values are drawn with the deviation |e_a - e'_a| / s around the other case's.
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
    """The nearest other case: squared Euclidean on continuous attributes plus Hamming on nominal ones."""
    apart = cases - cases[index]
    distance = np.where(nominal, apart != 0, apart**2).sum(axis=1)
    distance[index] = np.inf
    return int(distance.argmin())
