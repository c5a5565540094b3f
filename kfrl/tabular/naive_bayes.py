"""NBE: a naive-Bayes mixture for the joint distribution of all attributes (Lowd and Domingos 2005)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from kfrl.tabular.tables import Cases

Numbers = NDArray[np.float64]
FLOOR = 1e-3
"""The smallest standard deviation of a continuous attribute, which is scaled to [0, 1]."""
STEPS = 100
ENOUGH = 1e-4
"""EM stops when a step raises the mean log-likelihood of a case by less."""


@dataclass(frozen=True)
class Mixture:
    """P(x) = sum_c weight_c prod_j P_j(x_j | c): normal for continuous attributes, a table for nominal ones."""

    weights: Numbers
    """(components,)"""
    means: Numbers
    """(components, attributes); entries of nominal attributes are not used."""
    deviations: Numbers
    tables: tuple[Numbers | None, ...]
    """(components, categories) for each nominal attribute, None for each continuous one."""

    def log_joint(self, cases: Cases) -> Numbers:
        """The log of weight_c P(x | c), (n, components)."""
        total = np.tile(np.log(self.weights), (len(cases), 1))
        for index, table in enumerate(self.tables):
            column = cases[:, index, None]
            if table is None:
                mean, deviation = self.means[:, index], self.deviations[:, index]
                total += -0.5 * ((column - mean) / deviation) ** 2 - np.log(deviation * np.sqrt(2 * np.pi))
            else:
                total += np.log(table).T[column[:, 0].astype(np.int64)]
        return total

    def log_likelihood(self, cases: Cases) -> float:
        """Mean of log P(x) over cases."""
        return float(logsumexp(self.log_joint(cases), axis=1).mean())

    def sample(self, count: int, generator: np.random.Generator) -> Cases:
        """Draw cases, (count, attributes)."""
        component = generator.choice(len(self.weights), size=count, p=self.weights)
        drawn = generator.normal(self.means[component], self.deviations[component])
        for index, table in enumerate(self.tables):
            if table is not None:
                below = table.cumsum(axis=1)[component]
                drawn[:, index] = (generator.random((count, 1)) * below[:, -1:] > below).sum(axis=1)
        return np.asarray(drawn)


def maximise(cases: Cases, nominal: NDArray[np.bool_], categories: NDArray[np.int64], resp: Numbers) -> Mixture:
    """The M step: the mixture for responsibilities (n, components). Each category's count starts at one."""
    mass = resp.sum(axis=0) + 1e-10
    means = resp.T @ cases / mass[:, None]
    variances = resp.T @ cases**2 / mass[:, None] - means**2
    tables: list[Numbers | None] = []
    for index in range(cases.shape[1]):
        if not nominal[index]:
            tables.append(None)
            continue
        counts = resp.T @ np.eye(categories[index])[cases[:, index].astype(np.int64)] + 1
        tables.append(counts / counts.sum(axis=1, keepdims=True))
    return Mixture(mass / mass.sum(), means, np.sqrt(np.maximum(variances, FLOOR**2)), tuple(tables))


def fit_mixture(cases: Cases, nominal: NDArray[np.bool_], components: int, generator: np.random.Generator) -> Mixture:
    """Fit a mixture to cases (n, attributes) by EM; each component starts from the cases nearest to one random case."""
    categories = np.where(nominal, cases.max(axis=0) + 1, 0).astype(np.int64)
    seeds = cases[generator.choice(len(cases), size=min(components, len(cases)), replace=False)]
    distance = sum(
        (cases[:, None, j] != seeds[:, j]) if nominal[j] else (cases[:, None, j] - seeds[:, j]) ** 2
        for j in range(cases.shape[1])
    )
    mixture = maximise(cases, nominal, categories, np.eye(len(seeds))[np.argmin(distance, axis=1)])
    before = -np.inf
    for _ in range(STEPS):
        joint = mixture.log_joint(cases)
        whole = logsumexp(joint, axis=1, keepdims=True)
        if whole.mean() - before < ENOUGH:
            break
        before = float(whole.mean())
        mixture = maximise(cases, nominal, categories, np.exp(joint - whole))
    return mixture


def estimate(cases: Cases, nominal: NDArray[np.bool_], most: int, generator: np.random.Generator) -> Mixture:
    """Fit a mixture to all cases; a held-back tenth chooses 1, 2, 4, ... up to `most` components by likelihood."""
    held = generator.permutation(len(cases)) < max(1, len(cases) // 10)
    best, likeliest, components = 1, -np.inf, 1
    while components <= most and components < (~held).sum():
        fitted = fit_mixture(_covering(cases, ~held, nominal), nominal, components, generator)
        likelihood = fitted.log_likelihood(cases[held])
        if likelihood > likeliest:
            best, likeliest = components, likelihood
        components *= 2
    return fit_mixture(cases, nominal, best, generator)


def _covering(cases: Cases, rows: NDArray[np.bool_], nominal: NDArray[np.bool_]) -> Cases:
    """These rows, and a case with the last category of each nominal attribute, so that tables have all categories."""
    if not nominal.any():
        return np.asarray(cases[rows])
    last = np.where(nominal, cases.max(axis=0), np.median(cases[rows], axis=0))
    return np.concatenate([cases[rows], last[None]])
