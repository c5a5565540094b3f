"""CART (Breiman et al. 1984): a tree grown to the end on the labels, then pruned by cross-validation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold
from sklearn.tree import DecisionTreeClassifier

from kfrl.tabular.methods.base import Learned, SplitTask, Teacher
from kfrl.tabular.tables import Labels
from kfrl.tabular.trees import Tree, alphas, cut, from_sklearn, weakest_links

Numbers = NDArray[np.float64]


def learn(task: SplitTask, teacher: Teacher | None) -> Learned:
    """Train on the labels; `teacher` is not used."""
    return Learned(cart(task.columns, task.labels, task.classes, task.config.tree.folds, task.seed()))


def cart(columns: Numbers, labels: Labels, classes: int, folds: int, seed: int) -> Tree:
    """Grow a tree on cases (n, m), and prune it.

    Subtree k of the pruning sequence belongs to all alpha in [alpha_k, alpha_k+1). Its errors are counted on the folds,
    by their trees pruned at the geometric mean of the two. The subtree with the fewest errors is chosen, among equals
    the smallest.
    """
    tree, collapse = _grown(columns, labels, classes, seed)
    sequence = alphas(collapse)
    steps = np.maximum(sequence, 0)
    middles = np.append(np.sqrt(steps[:-1] * steps[1:]), np.inf)
    errors = np.zeros(len(sequence), dtype=np.int64)
    for learning, held in KFold(min(folds, len(labels)), shuffle=True, random_state=seed).split(columns):
        other, pruned_at = _grown(columns[learning], labels[learning], classes, seed)
        for index, alpha in enumerate(middles):
            answers = other.predict(columns[held], pruned_at <= alpha).argmax(axis=1)
            errors[index] += int((answers != labels[held]).sum())
    best = int(np.flatnonzero(errors == errors.min())[-1])
    return cut(tree, collapse <= sequence[best])


def _grown(columns: Numbers, labels: Labels, classes: int, seed: int) -> tuple[Tree, Numbers]:
    tree = from_sklearn(DecisionTreeClassifier(random_state=seed).fit(columns, labels), classes)
    return tree, weakest_links(tree)
