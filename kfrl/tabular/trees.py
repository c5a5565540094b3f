"""Classification trees: Gini splits, cost-complexity pruning by misclassification, and born-again growing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kfrl.tabular.tables import Cases, Labels, Preparation

Numbers = NDArray[np.float64]
Teacher = Callable[[Cases], Numbers]
"""Cases (n, attributes) -> probabilities (n, classes)."""


@dataclass(frozen=True)
class Tree:
    """A binary classification tree; its nodes are in preorder, the root first."""

    column: NDArray[np.int64]
    """(nodes,) the column that a node splits on, -1 for a leaf."""
    threshold: Numbers
    """(nodes,) values up to this go left."""
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    shares: Numbers
    """(nodes, classes) class shares of the cases that the tree was grown on."""
    reach: Numbers
    """(nodes,) share of all cases that reach the node."""

    @property
    def leaves(self) -> int:
        """Number of leaves."""
        return int((self.column < 0).sum())

    @property
    def depth(self) -> int:
        """Splits on the longest path."""
        return max(self.depths())

    def depths(self) -> list[int]:
        """Depth of each node."""
        depths = [0] * len(self.column)
        for node in np.flatnonzero(self.column >= 0):
            depths[self.left[node]] = depths[self.right[node]] = depths[node] + 1
        return depths

    def apply(self, columns: Numbers, leaf: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """The leaf that each case (n, columns) reaches; nodes in the mask `leaf` (nodes,) count as leaves."""
        ends = self.column < 0 if leaf is None else (self.column < 0) | leaf
        node = np.zeros(len(columns), dtype=np.int64)
        while len(on := np.flatnonzero(~ends[node])):
            here = node[on]
            goes_left = columns[on, self.column[here]] <= self.threshold[here]
            node[on] = np.where(goes_left, self.left[here], self.right[here])
        return node

    def predict(self, columns: Numbers, leaf: NDArray[np.bool_] | None = None) -> Numbers:
        """Class shares (n, classes) of the leaf that each case reaches."""
        return np.asarray(self.shares[self.apply(columns, leaf)])


@dataclass
class Builder:
    """Collects the nodes of a tree."""

    column: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    shares: list[Numbers] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)

    def leaf(self, shares: Numbers, reach: float) -> int:
        """Add a leaf; returns its node."""
        for values in (self.column, self.left, self.right):
            values.append(-1)
        self.threshold.append(0.0)
        self.shares.append(shares)
        self.reach.append(reach)
        return len(self.column) - 1

    def done(self) -> Tree:
        """The tree."""
        return Tree(
            np.array(self.column, dtype=np.int64),
            np.array(self.threshold),
            np.array(self.left, dtype=np.int64),
            np.array(self.right, dtype=np.int64),
            np.stack(self.shares),
            np.array(self.reach),
        )


def from_sklearn(fitted: Any, classes: int) -> Tree:
    """The tree of a fitted DecisionTreeClassifier with labels in 0 to `classes` - 1; some labels may be absent."""
    known = np.asarray(fitted.classes_).astype(np.int64)
    inner = fitted.tree_
    shares = np.zeros((inner.node_count, classes))
    shares[:, known] = inner.value[:, 0] / inner.value[:, 0].sum(axis=1, keepdims=True)
    column = np.where(inner.children_left < 0, -1, inner.feature)
    reach = inner.weighted_n_node_samples / inner.weighted_n_node_samples[0]
    left, right = (np.asarray(links, dtype=np.int64) for links in (inner.children_left, inner.children_right))
    return Tree(column.astype(np.int64), np.asarray(inner.threshold), left, right, shares, np.asarray(reach))


# --- splits -------------------------------------------------------------------------------------------------


def best_split(columns: Numbers, labels: Labels, classes: int, real: NDArray[np.bool_]) -> tuple[int, float] | None:
    """The column and threshold with the least Gini impurity among those with a real case on both sides.

    The impurity of the two sides is (n_l G_l + n_r G_r) / n with G = 1 - sum_k p_k^2; it is least where
    sum_k l_k^2 / n_l + sum_k r_k^2 / n_r is largest. The sums of squares grow case by case, at a cost that does not
    depend on the number of classes: a case of class k that moves to the left adds 2 l_k + 1 to the first, and
    sum_k r_k^2 = sum_k t_k^2 - 2 sum_k t_k l_k + sum_k l_k^2 with the totals t.

    Args:
        columns: (n, m)
        labels: (n,) of `classes` classes.
        classes: Number of classes.
        real: (n,) which cases are real.

    Returns:
        None if no split is possible, or no split lowers the impurity.
    """
    held = columns[real]
    usable = np.flatnonzero((held != held[:1]).any(axis=0))  # the others have all real cases on one side
    if not len(usable):
        return None
    columns = columns[:, usable]
    order = np.argsort(columns, axis=0, kind="stable")
    ordered = np.take_along_axis(columns, order, axis=0)
    totals, kinds = np.bincount(labels, minlength=classes), labels[order]
    sizes = np.arange(1, len(columns) + 1)[:, None]
    left = np.cumsum(2 * _earlier(kinds, totals) + 1, axis=0)
    right = (totals**2).sum() - 2 * np.cumsum(totals[kinds], axis=0) + left
    gain = left / sizes
    gain[:-1] += right[:-1] / (len(columns) - sizes[:-1])
    real_left = np.cumsum(real[order], axis=0)
    possible = (ordered[:-1] < ordered[1:]) & (real_left[:-1] > 0) & (real_left[:-1] < real.sum())
    scores = np.where(possible, gain[:-1], -np.inf)
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    if scores[row, column] <= gain[-1, 0] * (1 + 1e-12):
        return None
    return int(usable[column]), float((ordered[row, column] + ordered[row + 1, column]) / 2)


def _earlier(kinds: Labels, totals: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier cases of its column have the same class, for each case; kinds (n, m), totals (classes,)."""
    small = kinds.astype(np.min_scalar_type(len(totals)))  # numpy sorts 8 and 16 bits by radix
    by_class = np.argsort(small, axis=0, kind="stable")
    ranks = np.concatenate([np.arange(total) for total in totals])
    earlier = np.empty_like(kinds)
    np.put_along_axis(earlier, by_class, ranks[:, None], axis=0)
    return earlier


# --- born-again growing (Breiman and Shang 1996) ------------------------------------------------------------


@dataclass(frozen=True)
class Smearing:
    """Draws smeared cases in one region of the input space, without rejection.

    A smeared case is a real case whose attribute j is replaced, with probability `alter`, by another random case's.
    `allowed` (n, attributes) marks the observed values that lie in the region, and q_j = mean_a allowed_aj. Case a,
    smeared, lies in the region with probability w_a = prod_j [(1 - alter) allowed_aj + alter q_j], so a is drawn in
    proportion to w_a. Attribute j is kept with probability (1 - alter) allowed_aj over its factor, else drawn from the
    allowed values. This is the distribution of rejection sampling, at a cost independent of the region's size.
    """

    cases: Cases
    alter: float

    def _factors(self, allowed: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
        kept: Numbers = (1 - self.alter) * allowed.astype(np.float64)
        return kept, np.asarray(kept + self.alter * allowed.mean(axis=0))

    def reach(self, allowed: NDArray[np.bool_]) -> float:
        """The share of all smeared cases that lie in the region."""
        return float(self._factors(allowed)[1].prod(axis=1).mean())

    def draw(self, allowed: NDArray[np.bool_], count: int, generator: np.random.Generator) -> Cases:
        """Draw smeared cases in the region, (count, attributes)."""
        kept, factors = self._factors(allowed)
        weights = factors.prod(axis=1)
        base = generator.choice(len(self.cases), size=count, p=weights / weights.sum())
        keeps = generator.random((count, self.cases.shape[1])) * factors[base] < kept[base]
        others = np.stack(
            [
                generator.choice(column[inside], size=count)
                for column, inside in zip(self.cases.T, allowed.T, strict=True)
            ],
            axis=1,
        )
        return np.where(keeps, self.cases[base], others)


def grow_repeated(
    cases: Cases,
    preparation: Preparation,
    teacher: Teacher,
    node_cases: int,
    alter: float,
    generator: np.random.Generator,
) -> Tree:
    """Grow a born-again tree: every node draws its own smeared cases, which the teacher labels, and splits by Gini.

    A node has its real cases, and smeared ones up to `node_cases` in all (none if there are more real cases). A split
    needs a real case on both sides. Without such a split, or with a single class in the teacher's labels, the node is a
    leaf.

    Args:
        cases: (n, attributes), the training cases.
        preparation: Encodes the cases.
        teacher: Gives the labels, also those of real cases.
        node_cases: N_min.
        alter: p_alt.
        generator: Of the draws.
    """
    smearing, columns, builder = Smearing(cases, alter), preparation.encode(cases), Builder()
    attributes = [column.attribute for column in preparation.columns]

    def node(allowed: NDArray[np.bool_]) -> int:
        inside = allowed.all(axis=1)
        made = smearing.draw(allowed, max(0, node_cases - int(inside.sum())), generator)
        here = np.concatenate([cases[inside], made])
        probabilities = teacher(here)
        classes = probabilities.shape[1]
        labels = probabilities.argmax(axis=1)
        index = builder.leaf(np.bincount(labels, minlength=classes) / len(labels), smearing.reach(allowed))
        real = np.arange(len(here)) < inside.sum()
        split = best_split(preparation.encode(here), labels, classes, real) if np.ptp(labels) else None
        if split is not None:
            column, threshold = split
            below = columns[:, column] <= threshold
            builder.column[index], builder.threshold[index] = column, threshold
            for side, links in ((below, builder.left), (~below, builder.right)):
                narrower = allowed.copy()
                narrower[:, attributes[column]] &= side
                links[index] = node(narrower)
        return index

    node(np.ones(cases.shape, dtype=bool))
    return builder.done()


# --- pruning ------------------------------------------------------------------------------------------------


def weakest_links(tree: Tree) -> Numbers:
    """For each node (nodes,), the alpha at which cost-complexity pruning makes it a leaf; inf for leaves.

    R(t) = reach (1 - largest share), and the link of t has the strength (R(t) - R(T_t)) / (leaves of T_t - 1). The
    weakest link is cut repeatedly (Breiman et al. 1984, chapter 3).
    """
    nodes = len(tree.column)
    risk = tree.reach * (1 - tree.shares.max(axis=1))
    parent, end = np.full(nodes, -1), np.arange(1, nodes + 1)
    below, leaves = risk.copy(), np.ones(nodes)
    for node in np.flatnonzero(tree.column >= 0)[::-1]:
        sides = [tree.left[node], tree.right[node]]
        parent[sides], end[node] = node, end[sides].max()
        below[node], leaves[node] = below[sides].sum(), leaves[sides].sum()
    collapse, inner, alpha = np.full(nodes, np.inf), tree.column >= 0, 0.0
    while inner.any():
        strength = np.where(inner, (risk - below) / np.maximum(leaves - 1, 1), np.inf)
        node = int(strength.argmin())
        alpha = max(alpha, float(strength[node]))
        collapse[node], inner[node : end[node]] = alpha, False
        fewer, change = leaves[node] - 1, risk[node] - below[node]
        while node >= 0:
            leaves[node] -= fewer
            below[node] += change
            node = int(parent[node])
    return collapse


def alphas(collapse: Numbers) -> Numbers:
    """The alpha of every subtree in the pruning sequence, ascending from the whole tree (-1) to the root."""
    finite = np.unique(collapse[np.isfinite(collapse)])
    return np.concatenate([[-1.0], finite])


def cut(tree: Tree, leaf: NDArray[np.bool_]) -> Tree:
    """A copy of the tree in which the nodes of the mask `leaf` (nodes,) are leaves."""
    builder = Builder()

    def copy(node: int) -> int:
        index = builder.leaf(tree.shares[node], float(tree.reach[node]))
        if tree.column[node] >= 0 and not leaf[node]:
            builder.column[index], builder.threshold[index] = int(tree.column[node]), float(tree.threshold[node])
            builder.left[index] = copy(int(tree.left[node]))
            builder.right[index] = copy(int(tree.right[node]))
        return index

    copy(0)
    return builder.done()


def choose_subtree(tree: Tree, columns: Numbers, labels: Labels) -> Tree:
    """The pruned subtree with the fewest errors on cases (n, columns); among equals the smallest."""
    collapse = weakest_links(tree)
    sequence = alphas(collapse)
    errors = [int((tree.predict(columns, collapse <= alpha).argmax(1) != labels).sum()) for alpha in sequence]
    best = max(index for index, count in enumerate(errors) if count == min(errors))
    return cut(tree, collapse <= sequence[best])


# --- as text ------------------------------------------------------------------------------------------------


def describe(tree: Tree, preparation: Preparation, classes: tuple[str, ...]) -> str:
    """The tree as indented text; a leaf shows its class, its share of all cases, and the class's share of these."""
    return "\n".join(_lines(tree, preparation, classes, 0, 0)) + "\n"


def leaf_text(tree: Tree, node: int, classes: tuple[str, ...]) -> str:
    """A leaf's class and shares."""
    best = int(tree.shares[node].argmax())
    reach, share = 100 * tree.reach[node], 100 * tree.shares[node, best]
    return f"{classes[best]} ({reach:.1f} % of cases, {share:.0f} % of them in this class)"


def _lines(tree: Tree, preparation: Preparation, classes: tuple[str, ...], node: int, depth: int) -> Iterator[str]:
    indent = "|   " * depth
    if tree.column[node] < 0:
        yield f"{indent}{leaf_text(tree, node, classes)}"
        return
    words = preparation.condition(int(tree.column[node]), float(tree.threshold[node]))
    for word, side in zip(words, (tree.left[node], tree.right[node]), strict=True):
        if tree.column[side] < 0:
            yield f"{indent}{word}: {leaf_text(tree, int(side), classes)}"
        else:
            yield f"{indent}{word}"
            yield from _lines(tree, preparation, classes, int(side), depth + 1)
