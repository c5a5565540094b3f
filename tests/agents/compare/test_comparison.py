from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.compare.comparison import Area, Cell, Comparison, Estimate, compare, estimate
from agents.compare.records import RunRecord, read_run
from kfrl.compare.stats import bootstrap_interval, human_normalised, mean_over_games, stratified_interval
from kfrl.errors import UserError
from kfrl.runs.folder import Skipped

Build = Callable[..., Path]
Many = Callable[..., list[RunRecord]]


@pytest.fixture
def many(finished_run: Build, tmp_path: Path) -> Many:
    """many([3.0, 5.0], ...settings): a run of each score, with seeds 1, 2, ...; its games lie 1 to either side."""

    def build(scores: Sequence[float], **settings: object) -> list[RunRecord]:
        made = []
        for seed, score in enumerate(scores, start=1):
            path = tmp_path / str(len(list(tmp_path.iterdir())))
            made.append(read_run(finished_run(path, [score - 1, score + 1], **{"seed": seed, **settings})))
        return made

    return build


FLOW = {"teachers": "zoo:seaquest"}


def cells(comparison: Comparison) -> dict[tuple[str, str], Cell]:
    return {(cell.game, cell.arm.name): cell for cell in comparison.cells}


def note(comparison: Comparison, word: str) -> str:
    (found,) = [note for note in comparison.notes if word in note]
    return found


def test_a_score_is_the_mean_over_seeds_with_their_bootstrap_interval(many: Many) -> None:
    (cell,) = compare(many([2.0, 3.0, 10.0, 5.0])).cells
    assert cell.scores == (2.0, 3.0, 10.0, 5.0)
    assert cell.score == Estimate(5.0, *bootstrap_interval([2.0, 3.0, 10.0, 5.0]))
    # Over games it would be narrower: eight scores in place of four.
    assert cell.normalised == Estimate(
        *(human_normalised(points, "breakout") for points in (cell.score.value, cell.score.low, cell.score.high))
    )


def test_fewer_than_three_seeds_have_no_interval_and_it_is_said(many: Many) -> None:
    comparison = compare([*many([2.0, 3.0, 7.0]), *many([4.0, 9.0], **FLOW)])
    scratch, flow = comparison.cells
    assert scratch.score.low is not None
    assert flow.score == Estimate(6.5)
    assert flow.difference == Estimate(2.5)
    # 4 beats 2 and 3; 9 beats all: five of six pairs.
    assert flow.improvement == Estimate(5 / 6)
    assert "knowledge-flow (seaquest) on Breakout (2)" in note(comparison, "so no interval")
    assert "2 to 3" in note(comparison, "Seeds per cell differ")


def test_difference_and_improvement_are_over_the_seeds_of_both(many: Many) -> None:
    ours, theirs = [4.0, 9.0, 3.0], [2.0, 3.0, 7.0]
    comparison = compare([*many(theirs), *many(ours, **FLOW)])
    scratch, flow = comparison.cells
    assert (scratch.difference, scratch.improvement) == (None, None)
    low, high = stratified_interval([ours, theirs], lambda drawn: drawn[0].mean(axis=-1) - drawn[1].mean(axis=-1))
    assert flow.difference == Estimate(pytest.approx(4 / 3), low, high)
    assert flow.improvement is not None
    assert flow.improvement.value == pytest.approx((2 + 3 + 1.5) / 9)  # 3 ties with 3
    assert flow.improvement.low is not None


def test_areas_by_hand(many: Many) -> None:
    records = [
        *many([1.0], curve={50: (1.0, 1.0), 100: (3.0, 3.0)}),
        *many([1.0], **FLOW, curve={50: (10.0, 4.0), 100: (30.0, 8.0)}),
    ]
    scratch, flow = compare(records).cells
    assert scratch.alone == Area((2.0,), None, None)
    # Random play of Breakout has 1.7.
    assert flow.alone == Area((6.0,), Estimate(pytest.approx((6.0 - 1.7) / (2.0 - 1.7))), Estimate(3.0))
    # Level to the first bin with games in it, at 50 of 100, and straight to the last: 25 bins of 1, then the line to 3.
    assert scratch.training is not None
    assert scratch.training.height == pytest.approx(np.interp(np.arange(2, 102, 2), [50, 100], [1, 3]).mean())
    assert flow.training is not None
    assert flow.training.ratio is not None
    assert flow.training.ratio.value == pytest.approx(10.0)


def test_a_run_in_which_another_net_acted_has_no_area_of_its_training(many: Many) -> None:
    (record,) = many([1.0], curve={50: (1.0, 1.0), 100: (3.0, 3.0)})
    rows = ({"global_step": 20.0, "charts/guided_return": 9.0, "charts/episodes": 1.0}, *record.rows)
    (cell,) = compare([replace(record, rows=rows)]).cells
    assert cell.training is None
    assert cell.alone == Area((2.0,), None, None)


def test_areas_end_where_the_shorter_curve_does(many: Many) -> None:
    records = [
        *many([1.0], curve={0: (1.0, 1.0), 50: (1.0, 1.0)}),
        *many([1.0], **FLOW, curve={0: (2.0, 2.0), 50: (2.0, 2.0), 100: (99.0, 99.0)}),
    ]
    flow = compare(records).cells[1]
    assert flow.alone == Area((2.0,), None, Estimate(2.0)), "scratch is below random play"


def test_a_curve_that_begins_where_the_shorter_one_ends_has_no_area(many: Many) -> None:
    short = many([1.0], steps=50, curve={25: (1.0, 1.0), 50: (1.0, 1.0)})
    late = many([1.0], **FLOW, curve={50: (2.0, 2.0), 100: (2.0, 2.0)})
    flow = compare([*short, *late], allow_mixed=True).cells[1]
    assert flow.alone is None


def test_no_transfer_score_where_scratch_has_no_positive_area(many: Many) -> None:
    records = [
        *many([1.0], curve={50: (-3.0, -3.0), 100: (-1.0, -1.0)}),
        *many([1.0], **FLOW, curve={50: (-1.0, -1.0), 100: (-1.0, -1.0)}),
    ]
    flow = compare(records).cells[1]
    assert flow.alone == Area((-1.0,), None, None)


def test_an_area_below_random_play_is_not_called_three_quarters_of_scratch(many: Many) -> None:
    alien = {"game": "Alien", "curve": {50: (288.0, 288.0), 100: (289.0, 289.0)}}
    below = {"game": "Alien", "curve": {50: (216.0, 216.0), 100: (217.0, 217.0)}}
    flow = compare([*many([315.0], **alien), *many([288.0], **FLOW, **below)]).cells[1]
    assert flow.alone is not None
    assert flow.alone.ratio == Estimate(pytest.approx(0.75, abs=0.001))
    assert flow.alone.above_random == Estimate(pytest.approx((216.5 - 227.8) / (288.5 - 227.8)))


def test_a_win_of_every_pair_has_a_p_and_no_interval(many: Many) -> None:
    flow = compare([*many([1.0, 2.0, 3.0]), *many([4.0, 5.0, 9.0], **FLOW)]).cells[1]
    assert flow.improvement == Estimate(1.0)
    assert flow.p_value == pytest.approx(2 / 20)
    assert flow.difference is not None
    assert flow.difference.low is not None


def test_seeds_of_one_score_have_no_interval(many: Many) -> None:
    (cell,) = compare(many([21.0, 21.0, 21.0])).cells
    assert cell.score == Estimate(21.0)


def test_scores_under_another_frame_cap_meet_no_score_of_half_an_hour(many: Many) -> None:
    comparison = compare([*many([2.0], protocol="nature"), *many([3.0], **FLOW, protocol="nature")])
    assert [cell.normalised for cell in comparison.cells] == [None, None]
    assert comparison.cells[1].alone is not None
    assert comparison.cells[1].alone.above_random is None
    assert "18,000 frames" in note(comparison, "Not normalised")
    with pytest.raises(UserError, match=r"max_frames 18,000"):
        compare([*many([2.0], protocol="nature"), *many([3.0], **FLOW)])


def test_steps_to_the_baselines_score(many: Many) -> None:
    records = [
        *many([5.0, 7.0]),
        *many([1.0], **FLOW, curve={50: (0.0, 5.9), 100: (0.0, 6.0)}),
        *many([2.0], **FLOW | {"seed": 2}, curve={50: (0.0, 6.5), 100: (0.0, 1.0)}),
        *many([3.0], **FLOW | {"seed": 3}, curve={50: (9.0, 5.9), 100: (9.0, 5.9)}),
    ]
    flow = compare(records).cells[1]
    assert flow.reached == (100.0, 50.0, None)
    assert flow.steps_to_baseline == 100.0
    assert compare(records[:2]).cells[0].steps_to_baseline is None


def test_without_scratch_there_is_no_baseline_and_it_is_said(many: Many) -> None:
    comparison = compare([*many([1.0], **FLOW), *many([1.0], **FLOW, method="fine-tune")])
    assert comparison.baseline is None
    assert all((cell.difference, cell.improvement, cell.reached) == (None, None, ()) for cell in comparison.cells)
    assert "no scratch runs" in note(comparison, "No differences")


# --- across games -------------------------------------------------------------------------------------------


def two_games(many: Many) -> list[RunRecord]:
    return [
        *many([2.0, 3.0, 7.0]),
        *many([-20.0, -19.0, -10.0], game="Pong"),
        *many([4.0, 9.0, 3.0], **FLOW),
        *many([-18.0, 0.0, 5.0], **FLOW, game="Pong"),
    ]


def test_aggregates_are_of_human_normalised_scores_over_all_games(many: Many) -> None:
    comparison = compare(two_games(many))
    scratch, flow = comparison.aggregates
    breakout = [(score - 1.7) / (30.5 - 1.7) for score in (4.0, 9.0, 3.0)]
    pong = [(score + 20.7) / (14.6 + 20.7) for score in (-18.0, 0.0, 5.0)]
    assert (flow.runs, comparison.common_games) == (6, ("breakout", "pong"))
    assert flow.mean.value == pytest.approx((np.mean(breakout) + np.mean(pong)) / 2)
    assert flow.iqm.value == pytest.approx(np.mean(sorted(breakout + pong)[1:5]))
    assert flow.median.value == pytest.approx((np.mean(breakout) + np.mean(pong)) / 2)
    assert flow.optimality_gap.value == pytest.approx(1 - (np.mean(breakout) + np.mean(pong)) / 2)
    assert flow.mean == estimate([breakout, pong], mean_over_games)
    assert flow.improvement is not None
    assert flow.improvement.value == pytest.approx(((2 + 3 + 1.5) / 9 + (2 + 3 + 3) / 9) / 2)
    assert scratch.improvement is None


def test_an_arm_that_lacks_a_game_is_not_in_the_aggregate_and_it_is_said(many: Many) -> None:
    comparison = compare([*two_games(many), *many([8.0], **FLOW, method="fine-tune")])
    assert [found.arm.name for found in comparison.aggregates] == ["a3c", "knowledge-flow (seaquest)"]
    assert note(comparison, "without a run").endswith(": fine-tune (seaquest) on Pong.")
    assert "fine-tune (seaquest)" in note(comparison, "Not in the table across games")


def test_a_single_game_has_no_aggregate(many: Many) -> None:
    assert compare(many([1.0, 2.0])).aggregates == ()


def test_a_game_without_a_human_score_is_in_no_aggregate(many: Many) -> None:
    comparison = compare([*two_games(many), *many([100.0], game="pacman")])
    assert cells(comparison)["pacman", "a3c"].normalised is None
    assert comparison.common_games == ("breakout", "pong")
    assert note(comparison, "human score").endswith(": Pacman.")


# --- notes and refusals -------------------------------------------------------------------------------------


def test_notes_say_what_runs_share_and_where_they_differ(many: Many) -> None:
    comparison = compare(
        [
            *many([1.0]),
            *many([2.0], **FLOW, lr=0.1, commit="123456789"),
            *many([4.0, 5.0], **FLOW, lr=0.1, commit="abc"),
        ],
        [Skipped(Path("runs/bad"), "empty"), Skipped(Path("runs/worse"), "no eval.json.")],
    )
    assert "All 4 runs share their budget (100 agent steps)" in note(comparison, "runs share")
    assert note(comparison, "differ in lr") == "Arms differ in lr: a3c 0.001, knowledge-flow (seaquest) 0.1."
    assert note(comparison, "commits of the code").endswith("2 commits of the code: 12345678, abc.")
    assert "several runs of seed 1" in note(comparison, "several runs")
    assert note(comparison, "Left out") == "Left out, 2 in all: runs/bad (empty); runs/worse (no eval.json)."


def test_runs_of_a_named_arm_may_differ_and_it_is_said(finished_run: Build, tmp_path: Path) -> None:
    runs = [
        read_run(finished_run(tmp_path / str(number), [number], teachers=teachers), "mine")
        for number, teachers in enumerate(["zoo:seaquest", "other"])
    ]
    comparison = compare(runs)
    assert note(comparison, "Runs of mine") == "Runs of mine differ in teachers (zoo:seaquest / other)."
    assert "Unknown" in note(comparison, "counted separately")
    assert "Unknown" not in note(compare(runs[:1]), "counted separately")


def test_a_named_arm_says_that_its_teachers_file_was_replaced(finished_run: Build, tmp_path: Path) -> None:
    runs = [
        read_run(finished_run(tmp_path / name, [ord(name)], **FLOW, teacher_sha256=(name * 64,)), "mine")
        for name in "ab"
    ]
    assert note(compare(runs), "Runs of mine") == "Runs of mine differ in teacher.file (aaaaaaaa / bbbbbbbb)."


def test_a_copy_of_a_run_is_not_a_second_one(finished_run: Build, tmp_path: Path) -> None:
    first, copy, same_seed = (
        finished_run(tmp_path / name, [3.0, score]) for name, score in [("a", 4), ("b", 4), ("c", 5)]
    )
    comparison = compare([read_run(path) for path in (first, copy, same_seed)])
    assert comparison.cells[0].scores == (3.5, 4.0)
    assert f"{copy} (a copy of {first})" in note(comparison, "Left out")


def test_mixed_budgets_are_refused_unless_told_to_and_then_it_is_said(many: Many) -> None:
    mixed = [*many([1.0]), *many([2.0], **FLOW, steps=200)]
    with pytest.raises(UserError, match="do not share"):
        compare(mixed)
    comparison = compare(mixed, allow_mixed=True)
    assert len(comparison.cells) == 2
    assert "steps 100" in note(comparison, "MIXED")
    assert "steps 200" in note(comparison, "MIXED")


def test_runs_that_share_no_game_are_refused_unless_told_to(many: Many) -> None:
    apart = [*many([1.0]), *many([2.0], **FLOW, game="Pong")]
    with pytest.raises(UserError, match=r"No game was played by two arms.*a3c: Breakout; knowledge-flow.*: Pong"):
        compare(apart)
    assert len(compare(apart, allow_mixed=True).cells) == 2
    assert len(compare([*many([1.0]), *many([1.0], game="Pong")]).cells) == 2


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(UserError, match=r"No run is left.*2 in all: a \(empty\); b \(no eval.json\)"):
        compare([], [Skipped(Path("a"), "empty"), Skipped(Path("b"), "no eval.json")])
