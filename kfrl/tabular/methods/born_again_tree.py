"""Born-again trees (Breiman and Shang 1996): one tree that imitates an ensemble on smeared cases."""

from __future__ import annotations

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from kfrl.tabular.methods.base import Learned, SplitTask, Teacher
from kfrl.tabular.synthetic import smear
from kfrl.tabular.trees import Tree, choose_subtree, from_sklearn, grow_repeated


def learn(task: SplitTask, teacher: Teacher | None) -> Learned:
    """Grow on smeared cases that the teacher labels, prune, and choose the subtree with the fewest training errors.

    The training labels may choose, because the tree was fitted to the teacher's labels, mostly of smeared cases.
    """
    assert teacher is not None
    settings = task.config.tree
    if settings.grow == "repeated":
        tree = grow_repeated(
            task.cases, task.preparation, teacher.predict, settings.node_cases, settings.alter, task.generator
        )
    else:
        tree = _grow_global(task, teacher)
    chosen = choose_subtree(tree, task.columns, task.labels)
    return Learned(
        chosen,
        {"teacher": teacher.predict, **teacher.others},
        {"leaves_unpruned": tree.leaves, **teacher.facts},
    )


def _grow_global(task: SplitTask, teacher: Teacher) -> Tree:
    """Grow scikit-learn's tree, unpruned, on one set of real and smeared cases."""
    settings = task.config.tree
    made = smear(task.cases, max(0, settings.global_cases - len(task.cases)), settings.alter, task.generator)
    cases = np.concatenate([task.cases, made])
    labels = teacher.predict(cases).argmax(axis=1)
    learner = DecisionTreeClassifier(random_state=task.seed())
    return from_sklearn(learner.fit(task.preparation.encode(cases), labels), task.classes)
