"""Ensemble selection with replacement (Caruana et al. 2004)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]


def select(library: Probabilities, labels: NDArray[np.int64], steps: int, initial: int = 1) -> NDArray[np.int64]:
    """In each step, add the model that gives the average the least RMSE; returns the best ensemble of all steps.

    Args:
        library: (models, cases, classes), predictions on validation cases.
        labels: (cases,)
        steps: Models added after the first.
        initial: Number of the best single models to start from.

    Returns:
        (models,) how often each was selected; the ensemble is the average with these weights.
    """
    target = np.eye(library.shape[2])[labels]
    counts = np.zeros(len(library), dtype=np.int64)
    counts[np.argsort(_rmse(library, target), kind="stable")[:initial]] = 1
    total = np.tensordot(counts, library, axes=1)
    best: NDArray[np.int64] = counts.copy()
    least = float(_rmse(total / counts.sum(), target))
    for _ in range(steps):
        errors = _rmse((total + library) / (counts.sum() + 1), target)
        chosen = int(errors.argmin())
        counts[chosen] += 1
        total = total + library[chosen]
        if errors[chosen] < least:
            best, least = counts.copy(), float(errors[chosen])
    return best


def _rmse(predicted: Probabilities, target: Probabilities) -> Probabilities:
    return np.asarray(np.sqrt(((predicted - target) ** 2).mean(axis=(-2, -1))))
