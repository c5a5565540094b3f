import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kfrl.sweep.agreement import agreement_lines, rank_agreement
from kfrl.sweep.folder import FINISHED, SweepFolder, SweepPlan, TrialState, domain_of
from kfrl.sweep.space import EarlyStopping, Spec, make_trials


def test_ranks_are_spearmans_by_hand() -> None:
    # At 10 % the order is that of the end, at 25 % its opposite, at 50 % ranks 1, 3, 2, 4:
    # 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1)) = 0.8.
    values = [[1, 4, 1], [2, 3, 3], [3, 2, 2], [4, 1, 4]]
    curves = [[(10.0, a), (25.0, b), (50.0, c), (100.0, 0.0)] for a, b, c in values]
    assert rank_agreement(curves, [10, 20, 30, 40], 100) == pytest.approx([1.0, -1.0, 0.8])


def test_what_was_not_measured_has_no_rank() -> None:
    curves = [[(30.0, 1.0)], [(30.0, 2.0)]]
    ranks = rank_agreement(curves, [1, 2], 100)
    assert [math.isnan(rank) for rank in ranks] == [True, True, False]


def test_runs_on_one_subject_are_ranked_whatever_axis_they_differ_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("counting", None)
    plan = SweepPlan("counting", ())
    trials = make_trials(Spec(settings={"name": "x", "points": {"grid": [1, 2, 3, 4, 5]}}), domain_of(plan))
    plan = replace(plan, trials=tuple(trials))
    folder = SweepFolder(tmp_path)
    for k, trial in enumerate(trials):
        (tmp_path / trial.name).mkdir()
        (tmp_path / trial.name / "metrics.csv").write_text(f"global_step,count\n1,{k}\n2,{k}\n5,{k}\n")
    states = {trial.name: TrialState(FINISHED, objective=float(k)) for k, trial in enumerate(trials)}
    assert agreement_lines(folder, plan, states) == [
        "x, 5 runs, rank along the way against the end (Spearman): 10 %: 1.00, 25 %: 1.00, 50 %: 1.00"
    ]
    assert not agreement_lines(folder, plan, states | {trials[0].name: TrialState("stopped")})
    assert not agreement_lines(folder, replace(plan, early_stopping=EarlyStopping()), states)
