import itertools

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from kfrl.tabular.methods.cart import cart
from kfrl.tabular.synthetic import smear
from kfrl.tabular.tables import Attribute, Preparation
from kfrl.tabular.trees import (
    Smearing,
    Tree,
    alphas,
    best_split,
    choose_subtree,
    cut,
    describe,
    from_sklearn,
    grow_repeated,
    weakest_links,
)


def plain(attributes: int) -> Preparation:
    names = tuple(Attribute(f"x{index}") for index in range(attributes))
    return Preparation(names, (0.5,) * attributes, (0.0,) * attributes, (1.0,) * attributes)


def noisy(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.random((n, 3))
    return x, ((x[:, 0] > 0.5) ^ (generator.random(n) < 0.15)).astype(np.int64)


def test_a_split_is_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.random((120, 5)), generator.integers(0, 3, 120)
    stump = DecisionTreeClassifier(max_depth=1).fit(x, y).tree_
    found = best_split(x, y, 3, np.ones(120, dtype=bool))
    assert found == (stump.feature[0], pytest.approx(stump.threshold[0]))


def test_a_split_needs_a_real_case_on_both_sides() -> None:
    x, y = np.arange(6.0)[:, None], np.array([0, 0, 0, 1, 1, 1])
    real = np.array([True, True, False, False, False, False])
    assert best_split(x, y, 2, np.ones(6, dtype=bool)) == (0, 2.5)
    assert best_split(x, y, 2, real) == (0, 0.5)
    assert best_split(x, y, 2, np.arange(6) == 0) is None
    assert best_split(x, np.zeros(6, dtype=np.int64), 2, np.ones(6, dtype=bool)) is None


@pytest.mark.parametrize("values", [2, 4, 1000])
def test_a_split_is_that_of_trying_every_threshold(values: int) -> None:
    generator = np.random.default_rng(values)
    for classes in (2, 19):
        x, y = generator.integers(0, values, (60, 7)).astype(float), generator.integers(0, classes, 60)
        x[:, 3], real = 1.0, generator.random(60) < 0.2
        best: tuple[float, tuple[int, float] | None] = (-np.inf, None)
        for column in range(7):
            for low, high in itertools.pairwise(np.unique(x[:, column])):
                left = x[:, column] <= low
                if real[left].any() and real[~left].any():
                    sides = (np.bincount(y[side], minlength=classes) for side in (left, ~left))
                    score = sum(float((counts**2).sum() / counts.sum()) for counts in sides)
                    best = max(best, (score, (column, float((low + high) / 2))), key=lambda pair: pair[0])
        assert best_split(x, y, classes, real) == best[1]


def test_a_tree_of_scikit_learn_answers_as_it_does() -> None:
    x, y = noisy()
    fitted = DecisionTreeClassifier(random_state=0).fit(x, 2 * y)
    tree = from_sklearn(fitted, 3)
    np.testing.assert_allclose(tree.predict(x)[:, [0, 2]], fitted.predict_proba(x))
    assert (tree.leaves, tree.depth) == (fitted.get_n_leaves(), fitted.get_depth())


def by_hand() -> Tree:
    """The root asks x0, its left side x1; 10 cases: leaves (3, 1), (1, 2) and (0, 3)."""
    counts = np.array([[4, 6], [4, 3], [3, 1], [1, 2], [0, 3]])
    links = np.array([[1, 2, -1, -1, -1], [4, 3, -1, -1, -1]])
    shares = counts / counts.sum(1, keepdims=True)
    return Tree(
        np.array([0, 1, -1, -1, -1]), np.array([0.7, 0.5, 0, 0, 0]), links[0], links[1], shares, counts.sum(1) / 10
    )


def test_weakest_links_by_hand() -> None:
    # R: the root 0.5, its left side 0.3, the leaves 0.1, 0.1 and 0. The left side's link: (0.3 - 0.2) / 1 = 0.1; the
    # root's: (0.5 - 0.2) / 2 = 0.15, and (0.5 - 0.3) / 1 = 0.2 when the left side is a leaf.
    tree = by_hand()
    heavier = Tree(**{**vars(tree), "shares": np.vstack([[[0.5, 0.5]], tree.shares[1:]])})
    collapse = weakest_links(heavier)
    np.testing.assert_allclose(collapse[:2], [0.2, 0.1])
    assert np.isinf(collapse[2:]).all()
    np.testing.assert_allclose(alphas(collapse), [-1, 0.1, 0.2])
    smaller = cut(heavier, collapse <= 0.1)
    assert smaller.column.tolist() == [0, -1, -1]
    np.testing.assert_allclose(smaller.shares, heavier.shares[[0, 1, 4]])


def test_every_subtree_costs_least_at_its_alpha() -> None:
    x, y = noisy()
    tree = from_sklearn(DecisionTreeClassifier(random_state=0, max_depth=3).fit(x, y), 2)
    collapse = weakest_links(tree)

    def cost(subtree: Tree, alpha: float) -> float:
        leaf = subtree.column < 0
        return float((subtree.reach * (1 - subtree.shares.max(1)))[leaf].sum() + alpha * subtree.leaves)

    inner = np.flatnonzero(tree.column >= 0)
    every = []  # all ways to turn questions into leaves
    for bits in range(2 ** len(inner)):
        leaf = np.zeros(len(tree.column), dtype=bool)
        leaf[inner[[bool(bits >> i & 1) for i in range(len(inner))]]] = True
        every.append(cut(tree, leaf))
    for alpha in [0.0, *alphas(collapse)[1:] + 1e-9, *alphas(collapse)[1:] * 0.9]:
        assert cost(cut(tree, collapse <= alpha), alpha) == pytest.approx(min(cost(other, alpha) for other in every))


def test_the_chosen_subtree_has_the_fewest_errors_and_is_the_smallest_such() -> None:
    x, y = noisy()
    tree = from_sklearn(DecisionTreeClassifier(random_state=0).fit(x[:100], y[:100]), 2)
    chosen = choose_subtree(tree, x[100:], y[100:])
    collapse = weakest_links(tree)
    trees = [cut(tree, collapse <= alpha) for alpha in alphas(collapse)]
    errors = [int((other.predict(x[100:]).argmax(1) != y[100:]).sum()) for other in trees]
    assert chosen.leaves == min(
        other.leaves for other, count in zip(trees, errors, strict=True) if count == min(errors)
    )
    assert chosen.leaves < tree.leaves


def test_cart_prunes_what_is_noise() -> None:
    x, y = noisy(400)
    tree = cart(x, y, 2, 10, 0)
    assert tree.leaves <= 4
    assert tree.column[0] == 0
    assert tree.threshold[0] == pytest.approx(0.5, abs=0.03)


def test_smeared_cases_of_a_part_are_those_that_rejection_keeps() -> None:
    cases = np.random.default_rng(2).random((40, 3))
    cases[:, 1] = np.round(cases[:, 0] * 3)  # correlated, and nominal
    allowed = np.stack([cases[:, 0] <= 0.6, cases[:, 1] != 1, np.ones(40, dtype=bool)], axis=1)
    smearing = Smearing(cases, 0.3)
    many = smear(cases, 400_000, 0.3, np.random.default_rng(3))
    kept = many[(many[:, 0] <= 0.6) & (many[:, 1] != 1)]
    drawn = smearing.draw(allowed, 150_000, np.random.default_rng(4))
    assert smearing.reach(allowed) == pytest.approx(len(kept) / len(many), abs=3e-3)
    np.testing.assert_allclose(drawn.mean(0), kept.mean(0), atol=0.01)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(kept.T), atol=0.01)
    assert ((drawn[:, 0] <= 0.6) & (drawn[:, 1] != 1)).all()


def test_a_born_again_tree_learns_what_its_teacher_says_not_the_labels() -> None:
    cases = np.random.default_rng(5).random((150, 2))
    tree = grow_repeated(
        cases, plain(2), lambda x: np.eye(2)[(x[:, 1] > 0.3).astype(int)], 400, 0.5, np.random.default_rng(6)
    )
    assert tree.column[0] == 1
    assert tree.threshold[0] == pytest.approx(0.3, abs=0.02)
    assert (tree.predict(cases).argmax(1) == (cases[:, 1] > 0.3)).all()
    np.testing.assert_allclose(tree.reach[[1, tree.right[0]]].sum(), 1.0)
    # Every leaf has a real case in it.
    assert set(tree.apply(cases)) == set(np.flatnonzero(tree.column < 0))


def test_a_nominal_attribute_is_asked_for_a_category() -> None:
    generator = np.random.default_rng(7)
    cases = generator.integers(0, 3, (90, 2)).astype(float)
    kinds = tuple(Attribute(name, ("red", "green", "blue")) for name in ("hat", "coat"))
    preparation = Preparation(kinds, (0.5,) * 2, (0.0,) * 2, (1.0,) * 2)
    tree = grow_repeated(
        cases, preparation, lambda x: np.eye(2)[(x[:, 1] == 2).astype(int)], 200, 0.5, np.random.default_rng(8)
    )
    words = describe(tree, preparation, ("no", "yes")).splitlines()
    assert words[0].startswith("coat is not blue: no (")
    assert words[1].startswith("coat is blue: yes (")
    assert words[1].endswith("100 % of them in this class)")
