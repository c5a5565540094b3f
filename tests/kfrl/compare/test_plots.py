from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from kfrl.compare import plots
from kfrl.runs import history


def test_a_runs_picture_says_when_teachers_came_and_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.csv").write_text(
        "global_step,charts/episodic_return,charts/episodes,flow/p_student/fc,flow/p_teacher/pong/fc\n"
        "1000000,1,1,0.1,0.9\n2000000,2,1,0.3,0.7\n"
    )
    rows = [{"teacher": "pong", "event": "dropped"}, {"teacher": "alien", "event": "linked"}]
    history.add(tmp_path / "history.csv", 1_500_000, [*rows, {"teacher": "hero", "event": ""}])
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, target: drawn.append(figure))
    plots.draw_run(tmp_path, tmp_path / "curves.png")
    weights = drawn[0].axes[1]
    assert [(text.get_text(), text.get_position()[0]) for text in weights.texts] == [("-pong +alien", 1.5)]
    assert [line.get_xdata() for line in weights.lines if line.get_linestyle() == ":"] == [[1.5, 1.5]]


def test_games_that_another_net_plays_too_have_a_curve_of_their_own() -> None:
    guided = [{"global_step": 10.0, "charts/guided_return": 8.0, "charts/episodes": 1.0}]
    alone = [
        {"global_step": step, "charts/episodic_return": mean, "charts/episodes": games}
        for step, mean, games in ((55.0, 1.0, 3.0), (60.0, 5.0, 1.0), (100.0, 4.0, 2.0))
    ]
    rows = [*guided, *alone]
    steps, values = plots.games_curve(rows, plots.GUIDED, 5)
    assert (steps.tolist(), values.tolist()) == ([20.0], [8.0])
    # Of the bins that end at 20, 40, 60, 80 and 100 the third holds four games; the fourth is empty.
    steps, values = plots.games_curve(rows, plots.TRAINING, 5)
    assert (steps.tolist(), values.tolist()) == ([60.0, 80.0, 100.0], [2.0, 3.0, 4.0])


def test_an_arms_curves_begin_where_all_of_its_runs_have_a_value() -> None:
    def run(first_game: float, first_score: float) -> list[dict[str, float]]:
        games = [
            {"global_step": step, "charts/episodic_return": step / 10, "charts/episodes": 1.0}
            for step in np.arange(first_game, 101.0, 10.0)
        ]
        return [*games, *({"global_step": step, "eval/mean_return": 2.0 * step} for step in (first_score, 100.0))]

    without = [{"global_step": 100.0, "charts/guided_return": 8.0, "charts/episodes": 1.0}]
    curves = plots.arm_curves([run(20.0, 40.0), run(50.0, 60.0), without], 5)
    assert curves.training.steps.tolist() == [60.0, 80.0, 100.0]
    # A bin that ends at 60 holds the games that ended after 40.
    assert curves.training.returns.tolist() == [[5.5, 7.5, 9.5], [5.5, 7.5, 9.5]]
    assert curves.alone.steps.tolist() == [60.0, 80.0, 100.0]
    assert curves.alone.returns.tolist() == [[120.0, 160.0, 200.0], [120.0, 160.0, 200.0]]
    nothing = plots.arm_curves([without], 5)
    assert (nothing.training.returns.shape, nothing.alone.returns.shape) == ((0, 5), (0, 5))


def test_shares_are_drawn_by_layer_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, target: drawn.append(figure))
    panels = {"AFS": np.array([[0.25, 0.75], [np.nan, np.nan]]), "APS": np.array([[0.0, 1.0], [0.5, 0.5]])}
    plots.draw_shares(panels, ["conv1", "fc"], ["pong", "student"], tmp_path / "shares.png")
    afs, aps, _ = drawn[0].axes
    assert {text.get_position(): text.get_text() for text in afs.texts} == {(0, 0): "0.25", (1, 0): "0.75"}
    assert [axis.get_title() for axis in (afs, aps)] == ["AFS", "APS"]
    # The layer next to the input is at the bottom.
    assert afs.get_ylim() == (-0.5, 1.5)
    assert [label.get_text() for label in afs.get_yticklabels()] == ["conv1", "fc"]
    assert [label.get_text() for label in aps.get_xticklabels()] == ["pong", "student"]
