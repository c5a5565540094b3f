"""Ensembles as teachers: bagged and arced trees, and a library of models with ensemble selection."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from kfrl.errors import UserError
from kfrl.tabular.selection import select
from kfrl.tabular.tables import Labels

Numbers = NDArray[np.float64]
TREES = ("bagging", "arc-fs", "arc-x4")


# --- voting trees -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Voters:
    """An ensemble of scikit-learn's trees with weighted votes."""

    trees: tuple[DecisionTreeClassifier, ...]
    votes: tuple[float, ...]
    classes: int

    @property
    def leaves(self) -> int:
        """Number of leaves of all trees together."""
        return sum(int(tree.get_n_leaves()) for tree in self.trees)

    def predict(self, columns: Numbers) -> Numbers:
        """The share of the votes (n, classes) that each class gets."""
        total: Numbers = np.zeros((len(columns), self.classes))
        rows, single = np.arange(len(columns)), np.asarray(columns, dtype=np.float32)
        for tree, vote in zip(self.trees, self.votes, strict=True):
            total[rows, _answers(tree, single)] += vote
        return np.asarray(total / sum(self.votes))


def _answers(tree: DecisionTreeClassifier, columns: NDArray[np.floating]) -> Labels:
    """The class (n,) that a tree predicts for each case; the checks of `predict` would take longer than the tree."""
    leaves = tree.tree_.apply(np.asarray(columns, dtype=np.float32))
    return np.asarray(tree.classes_[tree.tree_.value[:, 0].argmax(axis=1)][leaves])


def voting_trees(
    kind: Literal["bagging", "arc-fs", "arc-x4"],
    columns: Numbers,
    labels: Labels,
    classes: int,
    count: int,
    generator: np.random.Generator,
) -> Voters:
    """Grow unpruned CARTs, each on a resample of the cases, drawn with weights w.

    - bagging: w is uniform; each tree has one vote.
    - arc-fs: e is the tree's weighted error on all cases, b = (1 - e) / e. w of each misclassified case is multiplied
      by b, and the tree has log b votes. If e is 0 or at least 1/2, w is uniform again, and the tree has no vote.
    - arc-x4: w is in proportion to 1 + m^4, where m of the trees so far misclassify the case; each tree has one vote.

    Args:
        kind: The rule for the weights.
        columns: (n, m)
        labels: (n,)
        classes: Number of classes.
        count: Number of trees.
        generator: Draws the resamples.
    """
    weights, wrong_so_far = np.full(len(labels), 1 / len(labels)), np.zeros(len(labels))
    trees, votes = [], []
    for _ in range(count):
        rows = generator.choice(len(labels), size=len(labels), p=weights)
        trees.append(DecisionTreeClassifier(random_state=_seed(generator)).fit(columns[rows], labels[rows]))
        wrong = _answers(trees[-1], columns) != labels
        wrong_so_far += wrong
        weights, vote = reweighted(kind, weights, wrong, wrong_so_far)
        votes.append(vote)
    return Voters(tuple(trees), tuple(votes) if any(votes) else (1.0,) * count, classes)


def reweighted(
    kind: Literal["bagging", "arc-fs", "arc-x4"], weights: Numbers, wrong: NDArray[np.bool_], wrong_so_far: Numbers
) -> tuple[Numbers, float]:
    """The weights (n,) of the next tree, and the votes of the last one, see `voting_trees`."""
    even = np.full(len(weights), 1 / len(weights))
    if kind == "bagging":
        return even, 1.0
    if kind == "arc-x4":
        raised = 1 + wrong_so_far**4
        return raised / raised.sum(), 1.0
    error = float(weights[wrong].sum())
    if error <= 0 or error >= 0.5:
        return even, 0.0
    raised = np.where(wrong, weights * (1 - error) / error, weights)
    return raised / raised.sum(), math.log((1 - error) / error)


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**31))


# --- library and ensemble selection -------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A fitted member of the library."""

    name: str
    fitted: Any

    def predict(self, columns: Numbers) -> Numbers:
        """Probabilities (n, classes)."""
        return np.asarray(self.fitted.predict_proba(columns), dtype=np.float64)


@dataclass(frozen=True)
class Selected:
    """The selected ensemble, an average, and the single models that it is compared with."""

    models: tuple[Model, ...]
    """The selected models."""
    counts: tuple[int, ...]
    """How often each was selected."""
    best: Model
    """The single model with the least error on validation cases."""
    best_net: Model
    """The net with the least error."""
    left_out: tuple[str, ...]
    """Learners that could not be fitted, and why."""

    def predict(self, columns: Numbers) -> Numbers:
        """Probabilities (n, classes)."""
        total = sum(count * model.predict(columns) for model, count in zip(self.models, self.counts, strict=True))
        return np.asarray(total / sum(self.counts))


def learners(columns: int) -> Iterator[tuple[str, Any]]:
    """The library's learners for this number of columns, by name."""
    yield from _forests()
    yield from _boosted()
    yield from _smooth(columns)
    for neighbours, weights in itertools.product((1, 3, 5, 9, 17, 33), ("uniform", "distance")):
        yield f"neighbours-{neighbours}-{weights}", KNeighborsClassifier(neighbours, weights=weights)
    yield "naive-bayes", GaussianNB()
    for hidden, decay in itertools.product((8, 32, 128), (1e-4, 1e-2, 1.0)):
        yield f"net-{hidden}-{decay:g}", _scaled(MLPClassifier((hidden,), alpha=decay, max_iter=200))


def _forests() -> Iterator[tuple[str, Any]]:
    yield "bagged-trees", BaggingClassifier(DecisionTreeClassifier(), 100)
    for rule in ("gini", "entropy"):
        for leaf in (1, 5, 20):
            yield f"tree-{rule}-{leaf}", DecisionTreeClassifier(criterion=rule, min_samples_leaf=leaf)
        for features in (1, "sqrt", 0.5):
            yield f"forest-{rule}-{features}", RandomForestClassifier(200, criterion=rule, max_features=features)
            yield f"extra-{rule}-{features}", ExtraTreesClassifier(200, criterion=rule, max_features=features)


def _boosted() -> Iterator[tuple[str, Any]]:
    for leaves, rate in itertools.product((4, 15, 31), (0.05, 0.2)):
        learner = HistGradientBoostingClassifier(
            max_leaf_nodes=leaves, learning_rate=rate, max_iter=150, early_stopping=False
        )
        yield f"gradient-{leaves}-{rate}", learner
    for depth, count in ((1, 200), (3, 100), (8, 100)):
        yield f"boosted-{depth}", AdaBoostClassifier(DecisionTreeClassifier(max_depth=depth), n_estimators=count)


def _smooth(columns: int) -> Iterator[tuple[str, Any]]:
    for penalty in (1, 10, 100):
        for width in (0.3, 1, 3):
            machine = SVC(C=penalty, gamma=width / columns)
            yield f"svm-{penalty}-{width}", _scaled(CalibratedClassifierCV(machine, ensemble=False, cv=3))
        yield f"logistic-{penalty}", _scaled(LogisticRegression(C=penalty / 10, max_iter=500))


def _scaled(learner: Any) -> Any:
    return make_pipeline(StandardScaler(), learner)


def fit_library(
    columns: Numbers, labels: Labels, generator: np.random.Generator, say: Callable[[str], None]
) -> tuple[list[Model], list[str]]:
    """Fit every learner to cases (n, m); returns the models, and name and reason of each that cannot be fitted."""
    models, left_out = [], []
    for name, learner in learners(columns.shape[1]):
        seeded = clone(learner)
        seeded.set_params(**{key: _seed(generator) for key in seeded.get_params() if key.endswith("random_state")})
        try:
            with warnings.catch_warnings():
                # Nets that have not converged are members too.
                warnings.simplefilter("ignore", ConvergenceWarning)
                models.append(Model(name, seeded.fit(columns, labels)))
        except ValueError as error:
            left_out.append(f"{name} ({str(error).splitlines()[0]})")
        say(f"library: {len(models)} models, the last {name}")
    return models, left_out


def select_ensemble(
    models: Sequence[Model], left_out: Sequence[str], columns: Numbers, labels: Labels, steps: int
) -> Selected:
    """Ensemble selection on validation cases (n, m); it starts from the five best models.

    Raises:
        UserError: no model could be fitted.
    """
    if not models:
        raise UserError(f"No learner of the library could be fitted to so few cases: {left_out[0]}.")
    predictions = np.stack([model.predict(columns) for model in models])
    target = np.eye(predictions.shape[2])[labels]
    errors = ((predictions - target) ** 2).mean(axis=(1, 2))
    counts = select(predictions, labels, steps, initial=min(5, len(models)))
    nets = [index for index, model in enumerate(models) if model.name.startswith("net-")] or [int(errors.argmin())]
    return Selected(
        tuple(model for model, count in zip(models, counts, strict=True) if count),
        tuple(int(count) for count in counts if count),
        models[int(errors.argmin())],
        models[min(nets, key=lambda index: float(errors[index]))],
        tuple(left_out),
    )
