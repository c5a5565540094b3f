import numpy as np

from kfrl.tabular.selection import select
from kfrl.tabular.synthetic import munge, random_cases, smear

CONTINUOUS = np.array([False, False])


def correlated(n: int = 300) -> np.ndarray:
    first = np.random.default_rng(0).random(n)
    return np.stack([first, first], axis=1)


def test_munge_without_swaps_returns_the_cases():
    cases = correlated()
    assert (munge(cases, CONTINUOUS, 0.0, 1.0, np.random.default_rng(1)) == cases).all()


def test_munge_leaves_identical_cases_as_they_are():
    cases = np.full((2, 2), 0.3)
    assert (munge(cases, CONTINUOUS, 1.0, 1.0, np.random.default_rng(1)) == cases).all()


def test_munge_moves_both_cases_around_the_other_value():
    # Each pair trades twice, once from either side: with a deviation near 0 it is back where it was.
    cases = np.array([[0.0, 0.0], [0.25, 0.25], [5.0, 5.0], [5.25, 5.25]])
    back = munge(cases, CONTINUOUS, 1.0, 1e9, np.random.default_rng(1))
    np.testing.assert_allclose(back, cases, atol=1e-6)


def test_munge_invents_no_nominal_value_and_keeps_their_counts():
    cases = np.random.default_rng(2).integers(0, 4, size=(60, 3)).astype(float)
    made = munge(cases, np.ones(3, dtype=bool), 0.5, 1.0, np.random.default_rng(3))
    assert (np.sort(made, axis=0) == np.sort(cases, axis=0)).all()
    assert (made != cases).any()


def test_munge_keeps_a_correlation_that_random_destroys():
    cases, generator = correlated(), np.random.default_rng(4)
    assert np.corrcoef(munge(cases, CONTINUOUS, 0.5, 1.0, generator).T)[0, 1] > 0.95
    assert abs(np.corrcoef(random_cases(cases, 3000, generator).T)[0, 1]) < 0.1


def test_smearing_alters_the_share_of_coordinates_that_was_asked_for():
    cases = correlated()
    made = smear(cases, 4000, 0.3, np.random.default_rng(5))
    # A pair stays equal only if neither coordinate was altered: 0.7 squared.
    assert abs((made[:, 0] == made[:, 1]).mean() - 0.49) < 0.03
    assert np.isin(made[:, 0], cases[:, 0]).all()


def test_selection_by_hand():
    # P(class 1) for two cases of class 1. The best single model is the third, error 0.3. Averages on the way:
    # (1.05, 0.65), (0.9, 0.9), (1.025, 0.825), (0.94, 0.94): the third step is worse than the second.
    ones = np.array([[1.4, 0.6], [0.6, 1.4], [0.7, 0.7], [0.0, 0.0]])
    library = np.stack([1 - ones, ones], axis=2)
    labels = np.array([1, 1])
    assert select(library, labels, steps=2).tolist() == [1, 1, 1, 0]
    assert select(library, labels, steps=3).tolist() == [1, 1, 1, 0]
    assert select(library, labels, steps=4).tolist() == [2, 2, 1, 0]


def test_selection_never_ends_worse_than_the_best_single_model():
    generator = np.random.default_rng(6)
    library, labels = generator.dirichlet(np.ones(3), size=(8, 40)), generator.integers(0, 3, 40)
    target = np.eye(3)[labels]
    counts = select(library, labels, steps=20)
    mixed = np.tensordot(counts, library, axes=1) / counts.sum()
    assert ((mixed - target) ** 2).mean() < ((library - target) ** 2).mean(axis=(1, 2)).min()
