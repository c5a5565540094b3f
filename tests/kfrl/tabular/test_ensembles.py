import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from sklearn.tree import DecisionTreeClassifier

from kfrl.tabular import ensembles
from kfrl.tabular.config import CompressionConfig, TabularConfig
from kfrl.tabular.ensembles import fit_library, reweighted, select_ensemble, voting_trees
from kfrl.tabular.methods.base import SplitTask, Teacher
from kfrl.tabular.methods.compression import learn
from kfrl.tabular.mimic_net import Lesson, train_mimic
from kfrl.tabular.naive_bayes import FLOOR, estimate, fit_mixture, maximise


def test_arc_fs_by_hand() -> None:
    # e = 0.25, b = 3: the wrong one's weight becomes 3/4 against 1/4 each, so 3/6 and 1/6.
    wrong = np.array([True, False, False, False])
    weights, vote = reweighted("arc-fs", np.full(4, 0.25), wrong, wrong.astype(float))
    np.testing.assert_allclose(weights, [1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert vote == pytest.approx(math.log(3))
    # Wrong and right cases weigh the same now: e = 1/2 for a tree with the same mistakes, which starts it all again.
    weights, vote = reweighted("arc-fs", weights, wrong, wrong.astype(float))
    assert (weights.tolist(), vote) == ([0.25] * 4, 0.0)
    assert reweighted("arc-fs", weights, ~wrong & wrong, np.zeros(4))[1] == 0.0


def test_arc_x4_by_hand() -> None:
    weights, vote = reweighted("arc-x4", np.full(3, 1 / 3), np.zeros(3, dtype=bool), np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(weights, np.array([1, 2, 17]) / 20)
    assert vote == 1.0


@pytest.mark.parametrize("kind", ["bagging", "arc-fs", "arc-x4"])
def test_voting_trees_are_better_than_one_of_them(kind) -> None:
    generator = np.random.default_rng(0)
    x = generator.random((600, 4))
    y = (x[:, 0] + x[:, 1] > x[:, 2] + 0.5).astype(np.int64)
    voters = voting_trees(kind, x[:200], y[:200], 3, 25, np.random.default_rng(1))
    answers = voters.predict(x[200:])
    np.testing.assert_allclose(answers.sum(1), 1)
    single = DecisionTreeClassifier(random_state=0).fit(x[:200], y[:200])
    assert (answers.argmax(1) == y[200:]).mean() > (single.predict(x[200:]) == y[200:]).mean()


def test_trees_that_are_never_wrong_have_equal_votes() -> None:
    x = np.repeat([[0.0], [1.0]], 20, axis=0)
    voters = voting_trees("arc-fs", x, (x[:, 0] > 0).astype(np.int64), 2, 3, np.random.default_rng(0))
    assert voters.votes == (1.0, 1.0, 1.0)


def test_the_library_leaves_out_what_cannot_be_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [item for item in ensembles.learners(2) if item[0] in ("neighbours-33-uniform", "naive-bayes", "net-8-1")]
    known += [item for item in ensembles.learners(2) if item[0] in ("svm-1-1",)]
    monkeypatch.setattr(ensembles, "learners", lambda columns: known)
    x, y = np.random.default_rng(1).random((20, 2)), np.array([0, 1] * 9 + [0, 2])
    models, left_out = fit_library(x, y, np.random.default_rng(2), lambda words: None)
    assert [name.split(" ")[0] for name in left_out] == ["svm-1-1"]
    names = [model.name for model in models]
    assert "naive-bayes" in names
    models = [model for model in models if model.name != "neighbours-33-uniform"]
    chosen = select_ensemble(models, left_out, x, y, 5)
    assert chosen.best_net.name == "net-8-1"
    np.testing.assert_allclose(chosen.predict(x).sum(1), 1)


def two_lumps() -> np.ndarray:
    generator = np.random.default_rng(3)
    side = generator.random(400) < 0.3
    continuous = np.where(side[:, None], [0.2, 0.8], [0.7, 0.3]) + 0.05 * generator.normal(size=(400, 2))
    nominal = np.where(side, generator.integers(0, 2, 400), 2)
    return np.column_stack([continuous, nominal])


def test_em_on_numbers_is_scikit_learns_mixture() -> None:
    cases = two_lumps()[:, :2]
    ours = fit_mixture(cases, np.zeros(2, dtype=bool), 2, np.random.default_rng(0))
    theirs = GaussianMixture(
        2, covariance_type="diag", reg_covar=0, means_init=ours.means, weights_init=ours.weights,
        precisions_init=1 / ours.deviations**2, max_iter=1,
    )  # fmt: skip
    theirs.fit(cases)
    np.testing.assert_allclose(theirs.means_, ours.means, atol=1e-3)
    np.testing.assert_allclose(theirs.covariances_, ours.deviations**2, atol=1e-4)
    assert theirs.score(cases) == pytest.approx(ours.log_likelihood(cases), abs=1e-3)


def test_the_m_step_by_hand() -> None:
    cases = np.array([[0.0, 0], [1.0, 1], [1.0, 1]])
    mixture = maximise(cases, np.array([False, True]), np.array([0, 2]), np.array([[1.0], [1.0], [0.5]]))
    assert mixture.means[0, 0] == pytest.approx(0.6)
    assert mixture.deviations[0, 0] ** 2 == pytest.approx(0.24)
    np.testing.assert_allclose(mixture.tables[1], [[2 / 4.5, 2.5 / 4.5]])
    still = maximise(np.full((2, 1), 0.5), np.array([False]), np.array([0]), np.ones((2, 1)))
    assert still.deviations[0, 0] == FLOOR


def test_nbe_samples_like_the_cases() -> None:
    cases = two_lumps()
    mixture = estimate(cases, np.array([False, False, True]), 8, np.random.default_rng(0))
    assert len(mixture.weights) >= 2
    drawn = mixture.sample(4000, np.random.default_rng(1))
    np.testing.assert_allclose(drawn.mean(0), cases.mean(0), atol=0.06)
    assert np.corrcoef(drawn.T[:2])[0, 1] == pytest.approx(np.corrcoef(cases.T[:2])[0, 1], abs=0.03)
    assert set(np.unique(drawn[:, 2])) == {0.0, 1.0, 2.0}


def test_a_mimic_learns_probabilities_in_the_units_of_its_input() -> None:
    x = np.random.default_rng(4).random((500, 2)) * [1.0, 0.01]
    positive = 1 / (1 + np.exp(-6 * (x[:, 0] - 100 * x[:, 1])))
    lesson = Lesson(x, np.column_stack([1 - positive, positive]))
    config = CompressionConfig(hidden=8, updates=600, batch_size=100, lr=0.02)
    net = train_mimic(lesson, config, seed=0)
    assert np.abs(net.predict(x) - lesson.targets).max() < 0.1
    assert net.parameters == 2 * 8 + 8 + 8 * 2 + 2
    again = train_mimic(lesson, config, seed=0)
    assert (again.predict(x) == net.predict(x)).all()


def test_a_mimic_learns_from_the_cases_too_on_which_the_ensemble_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Lesson] = []
    monkeypatch.setattr(
        "kfrl.tabular.methods.compression.train_mimic", lambda lesson, settings, seed: seen.append(lesson)
    )
    cases = np.random.default_rng(0).random((50, 3))
    settings = CompressionConfig(ways=("munge",), cases=(50,), swap=0.0)
    task = SplitTask(
        TabularConfig(compression=settings),
        cases,
        np.arange(50) % 2,
        np.arange(50) < 10,
        2,
        SimpleNamespace(encode=lambda columns: columns, nominal=np.zeros(3, dtype=bool)),
        np.random.default_rng(1),
        lambda words: None,
    )
    learn(task, Teacher(lambda columns: np.column_stack([columns[:, 0], 1 - columns[:, 0]])))
    # Munge without a swap returns the cases themselves.
    (lesson,) = seen
    np.testing.assert_array_equal(lesson.columns, np.concatenate([cases, cases]))
