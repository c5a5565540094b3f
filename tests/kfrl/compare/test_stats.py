from __future__ import annotations

import itertools

import numpy as np
import pytest
import rliable.library
import rliable.metrics
import scipy.stats
from ale_py import roms

from kfrl.compare.stats import (
    bootstrap_interval,
    chance_of_top,
    curve_height,
    first_reached,
    human_normalised,
    iqm,
    iqm_over_games,
    mean,
    mean_over_games,
    median_over_games,
    optimality_gap,
    permutation_p,
    probability_of_improvement,
    reference_scores,
    stratified_interval,
    summarise,
    top_of,
)

SKEWED = np.random.default_rng(1).exponential(100.0, size=30)


def test_iqm_by_hand() -> None:
    assert float(iqm([100, 4, 1, 3, 2, 6, 5, -90])) == 3.5  # of 2 3 4 5
    assert float(iqm([0, 10, 20, 30, 1000])) == 20.0  # a quarter of five is one
    assert float(iqm([7, 9])) == 8.0


def test_iqm_is_the_trimmed_mean() -> None:
    for n in range(1, 30):
        assert float(iqm(SKEWED[:n])) == pytest.approx(scipy.stats.trim_mean(SKEWED[:n], 0.25))


def test_iqm_is_taken_over_the_last_axis() -> None:
    np.testing.assert_array_equal(iqm([[0, 1, 2, 90], [5, 5, 7, 7]]), [1.5, 6.0])


@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize("statistic", [mean, iqm])
def test_the_interval_is_scipys(statistic, confidence) -> None:
    oracle = scipy.stats.bootstrap(
        (SKEWED,),
        statistic,
        method="percentile",
        n_resamples=20_000,
        confidence_level=confidence,
        random_state=np.random.default_rng(3),
    ).confidence_interval
    found = bootstrap_interval(SKEWED, statistic, reps=20_000, confidence=confidence, seed=4)
    assert found == pytest.approx(tuple(oracle), rel=0.02)


def test_the_interval_of_two_scores_by_hand() -> None:
    # Means of {0, 1} drawn twice: 0, 1/2, 1/2, 1. The central half of them ends at the quartiles' values.
    assert bootstrap_interval([0, 1], confidence=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0, 1], confidence=0.4) == (0.5, 0.5)


def test_a_seed_gives_the_same_interval_and_another_another() -> None:
    first, again, other = (bootstrap_interval(SKEWED, reps=500, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("scores", [[], [1.0], [[1.0, 2.0]]])
def test_no_interval_without_two_scores(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two scores"):
        bootstrap_interval(scores)


def test_summary_by_hand() -> None:
    found = summarise([4.0, 0.0, 2.0, 10.0])
    assert (found.n, found.mean, found.median, found.min, found.max) == (4, 4.0, 3.0, 0.0, 10.0)
    assert found.iqm == 3.0
    assert found.std == pytest.approx((56 / 3) ** 0.5)  # squared distances 0, 16, 4, 36 over n - 1
    assert found.standard_error == pytest.approx((56 / 3) ** 0.5 / 2)
    assert (found.ci_low, found.ci_high) == bootstrap_interval([4.0, 0.0, 2.0, 10.0])


def test_a_single_score_has_no_spread() -> None:
    found = summarise([7.0])
    assert (found.mean, found.iqm, found.min, found.max) == (7.0, 7.0, 7.0, 7.0)
    assert (found.std, found.standard_error, found.ci_low, found.ci_high) == (None, None, None, None)


def test_no_scores_have_no_summary() -> None:
    with pytest.raises(ValueError, match="at least one score"):
        summarise([])


def test_permutation_p_by_hand() -> None:
    assert permutation_p([4.0, 5.0, 9.0], [1.0, 2.0, 3.0]) == pytest.approx(2 / 20)
    # Of C(4, 2) = 6 ways to choose the first two of 1, 2, 3, 4, {2, 4} differs by 1; 4 differ by at least that.
    assert permutation_p([2.0, 4.0], [1.0, 3.0]) == pytest.approx(4 / 6)
    assert permutation_p([1.0, 1.0], [1.0, 1.0]) == 1.0
    ours, theirs = [1.0, 5.0, 2.0, 8.0], [4.0, 6.0, 9.0]
    pool = ours + theirs
    found = [np.mean(part) - (sum(pool) - sum(part)) / 3 for part in itertools.combinations(pool, 4)]
    below = np.mean(np.array(found) <= np.mean(ours) - np.mean(theirs) + 1e-9)
    assert permutation_p(ours, theirs) == pytest.approx(2 * below)


@pytest.mark.parametrize(("n", "m", "within"), [(2, 2, 1e-12), (5, 7, 1e-12), (8, 8, 1e-12), (15, 12, 0.01)])
def test_permutation_p_is_scipys(n: int, m: int, within: float) -> None:
    drawn = np.random.default_rng(n)
    ours, theirs = drawn.normal(0.4, 1.0, n).round(1), drawn.normal(0.0, 1.0, m).round(1)
    independent = scipy.stats.permutation_test(
        (ours, theirs), lambda one, other: one.mean() - other.mean(), vectorized=False, n_resamples=20_000, rng=1
    )
    assert permutation_p(ours, theirs) == pytest.approx(independent.pvalue, abs=within)


def test_games_that_all_end_alike_have_no_interval() -> None:
    found = summarise([21.0] * 30)
    assert (found.mean, found.ci_low, found.ci_high) == (21.0, None, None)


def test_a_score_under_another_frame_cap_is_not_normalised() -> None:
    assert human_normalised(227.8, "alien", 108_000) == 0.0
    assert human_normalised(227.8, "alien", 18_000) is None


def test_human_normalised_by_hand() -> None:
    assert human_normalised(227.8, "alien") == 0.0
    assert human_normalised(7127.7, "alien") == 1.0
    assert human_normalised(1781.9, "seaquest") == pytest.approx((1781.9 - 68.4) / 41986.3)
    assert human_normalised(-20.7 - 35.3, "pong") == pytest.approx(-1.0)
    assert human_normalised(-17.5, "double_dunk") == pytest.approx(0.5)


def test_a_game_outside_atari_57_is_not_normalised() -> None:
    assert human_normalised(100.0, "pacman") is None


def test_the_table_is_atari_57_in_ale_pys_names() -> None:
    table = reference_scores()
    assert len(table) == 57
    assert set(table) <= set(roms.get_all_rom_ids())
    assert all(scores.human > scores.random for scores in table.values())
    # The 30-minute table, not Nature's of 2015 (6875.4).
    assert table["alien"].human == 7127.7


# --- several games ------------------------------------------------------------------------------------------

OURS = np.random.default_rng(2).normal([0.2, 0.5, 1.1, 2.0], 0.4, size=(5, 4)).round(1)
THEIRS = np.random.default_rng(3).normal([0.1, 0.6, 0.9, 1.0], 0.4, size=(4, 4)).round(1)
"""(runs, games), as rliable takes them; rounded, so that there are ties."""
AGGREGATES = {
    "iqm": (iqm_over_games, rliable.metrics.aggregate_iqm),
    "mean": (mean_over_games, rliable.metrics.aggregate_mean),
    "median": (median_over_games, rliable.metrics.aggregate_median),
    "optimality gap": (optimality_gap, rliable.metrics.aggregate_optimality_gap),
}


@pytest.mark.parametrize("name", AGGREGATES)
@pytest.mark.parametrize("scores", [OURS, THEIRS, OURS[:3], OURS[:, :1]], ids=["5x4", "4x4", "3x4", "5x1"])
def test_aggregates_are_rliables(name: str, scores: np.ndarray) -> None:
    found, oracle = AGGREGATES[name]
    assert float(found(list(scores.T))) == pytest.approx(float(oracle(scores)), abs=1e-9)


@pytest.mark.filterwarnings("ignore:random_state is deprecated:FutureWarning")  # rliable asks arch the old way
@pytest.mark.parametrize("name", AGGREGATES)
def test_intervals_across_games_are_rliables(name: str) -> None:
    found, oracle = AGGREGATES[name]
    _, intervals = rliable.library.get_interval_estimates(
        {"ours": OURS}, lambda scores: np.array([oracle(scores)]), reps=10_000, random_state=np.random.RandomState(0)
    )
    ends = stratified_interval(list(OURS.T), found, reps=20_000, seed=1)
    assert ends == pytest.approx(tuple(intervals["ours"][:, 0]), abs=0.02)


def test_probability_of_improvement_is_rliables() -> None:
    oracle = rliable.metrics.probability_of_improvement(OURS, THEIRS)
    assert float(probability_of_improvement(list(OURS.T), list(THEIRS.T))) == pytest.approx(oracle, abs=1e-9)
    assert (OURS[:, None] == THEIRS[None]).any(), "no ties are tested"


@pytest.mark.filterwarnings("ignore:random_state is deprecated:FutureWarning")  # rliable asks arch the old way
def test_the_interval_of_the_probability_of_improvement_is_rliables() -> None:
    _, intervals = rliable.library.get_interval_estimates(
        {"pair": (OURS, THEIRS)},
        rliable.metrics.probability_of_improvement,
        reps=2_000,
        random_state=np.random.RandomState(0),
    )
    ends = stratified_interval(
        [*OURS.T, *THEIRS.T], lambda drawn: probability_of_improvement(drawn[:4], drawn[4:]), reps=20_000
    )
    assert ends == pytest.approx(tuple(intervals["pair"].ravel()), abs=0.02)


def test_probability_of_improvement_by_hand() -> None:
    # 1 beats nothing and ties with 1; 2 beats 1: (1/2 + 0 + 1 + 0) of four pairs.
    assert float(probability_of_improvement([[1, 2]], [[1, 3]])) == 0.375
    assert float(probability_of_improvement([[1, 2], [9]], [[1, 3], [0, 0]])) == (0.375 + 1) / 2


def test_games_with_unequal_numbers_of_runs_by_hand() -> None:
    strata = [[0.0, 1.0], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    assert float(mean_over_games(strata)) == (0.5 + 4.5) / 2
    assert float(median_over_games([*strata, [9.0]])) == 4.5
    assert float(iqm_over_games(strata)) == 3.5  # of 2 3 4 5
    assert float(optimality_gap(strata)) == 1 - (0.5 + 1.0) / 2


def test_every_game_is_drawn_anew_by_itself() -> None:
    # Drawn from all runs at once, the mean would be anything from 1 to 3.
    assert stratified_interval([[1.0, 1.0], [3.0, 3.0]], mean_over_games, reps=500) == (2.0, 2.0)


def test_no_interval_across_games_if_one_has_a_single_run() -> None:
    with pytest.raises(ValueError, match="at least two scores"):
        stratified_interval([[1.0, 2.0], [1.0]], mean_over_games)


# --- curves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "height"),
    [
        (20, 150 / 20),  # a triangle of 50 and a square of 100
        (15, 100 / 15),
        (10, 5.0),
        (40, 350 / 40),  # level beyond the last point
    ],
)
def test_curve_height_by_hand(end: float, height: float) -> None:
    assert curve_height([0, 10, 20], [0, 10, 10], end) == pytest.approx(height)


def test_a_curve_that_starts_late_has_its_own_length() -> None:
    assert curve_height([10, 20], [4, 8], 20) == 6.0


def test_first_reached_by_hand() -> None:
    assert first_reached([0, 10, 20], [1.0, 5.0, 3.0], 3.0) == 10.0
    assert first_reached([0, 10, 20], [1.0, 5.0, 3.0], 5.0) == 10.0
    assert first_reached([0, 10, 20], [1.0, 5.0, 3.0], 5.1) is None
    assert first_reached([], [], 0.0) is None


@pytest.mark.parametrize(("n", "k", "expected"), [(25, 3, 1.58), (50, 5, 1.71), (25, 1, 1.97), (16, 3, 1.34)])
def test_the_top_of_equal_runs_is_above_their_mean_by_chance(n: int, k: int, expected: float) -> None:
    # Of 60,000 draws.
    assert chance_of_top(n, k) == pytest.approx(expected, abs=0.01)


def test_the_larger_of_two_normal_draws_is_above_by_one_over_root_pi() -> None:
    assert chance_of_top(2, 1) == pytest.approx(np.pi**-0.5)
    assert chance_of_top(5, 5) == pytest.approx(0.0, abs=1e-9)


def test_the_top_of_scores_and_of_errors() -> None:
    top = top_of([1.0, 2.0, 3.0, 6.0], k=2)
    assert (top.n, top.mean, top.top) == (4, 3.0, 4.5)
    assert top.by_chance == pytest.approx(3.0 + top.std * chance_of_top(4, 2))
    errors = top_of([1.0, 2.0, 3.0, 6.0], k=2, higher_is_better=False)
    assert (errors.mean, errors.top) == (3.0, 1.5)
    assert errors.by_chance == pytest.approx(6.0 - top.by_chance)
