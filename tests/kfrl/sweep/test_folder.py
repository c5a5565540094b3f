import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kfrl.errors import UserError
from kfrl.runs.provenance import sha256
from kfrl.sweep.estimate import resolve_all
from kfrl.sweep.folder import (
    FAILED,
    FINISHED,
    PRUNED,
    STOPPED,
    WAITING,
    SweepFolder,
    SweepPlan,
    TrialState,
    domain_of,
    levels,
    member_of_sweep,
    untaught,
)
from kfrl.sweep.space import FixedTeacher, Spec, make_trials, with_fixed_teachers


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("counting", None)


def plan_of(**spec: Any) -> SweepPlan:
    plan = SweepPlan("counting", ())
    return replace(plan, trials=tuple(make_trials(Spec(**spec), domain_of(plan))))


def test_a_trials_state_is_what_its_folder_says(tmp_path: Path) -> None:
    plan = plan_of(settings={"name": "x", "seed": {"range": 5}})
    folder = SweepFolder(tmp_path / "sweep")
    folder.prepare(plan)
    for name in ("s1", "s2"):
        (folder.path / name).mkdir()
        (folder.path / name / "config.yaml").touch()
    (folder.path / "s1" / "eval.json").write_text('{"score": 3.5}')
    said = dict.fromkeys(["s1", "s2", "s3"], TrialState("running", 4, 0.4)) | {
        "s4": TrialState(PRUNED, 2, 0.2, objective=7.0),
        "s5": TrialState(FAILED, error="No such thing."),
    }
    folder.write_states(plan, said)
    found = folder.states(plan)
    assert [found[f"s{seed}"].state for seed in range(1, 6)] == [FINISHED, STOPPED, WAITING, PRUNED, FAILED]
    assert (found["s1"].score, found["s1"].share) == (3.5, 1.0)
    assert found["s4"].objective == 7.0
    assert found["s5"].error == "No such thing."


def test_the_csv_has_what_was_drawn(tmp_path: Path) -> None:
    plan = plan_of(settings={"name": "x", "points": {"choice": [0.5]}, "seed": {"range": 2}})
    folder = SweepFolder(tmp_path / "sweep")
    folder.prepare(plan)
    folder.write_states(plan, folder.states(plan))
    rows = list(csv.DictReader(folder.table.open()))
    assert [(row["trial"], row["seed"], row["points"], row["state"]) for row in rows] == [
        ("s1", "1", "0.5", "waiting"),
        ("s2", "2", "0.5", "waiting"),
    ]


def test_every_trial_has_the_teacher_that_a_name_stood_for_at_first(tmp_path: Path) -> None:
    """Also trials that the sweep gains, and after a resume."""
    one = tmp_path / "one"
    one.write_text("a teacher")
    folder, checksum = SweepFolder(tmp_path / "sweep"), sha256(one)
    for runs in (2, 3):
        plan = plan_of(settings={"name": "x", "teachers": str(one), "seed": {"range": runs}})
        folder.check(plan)
        folder.prepare(resolve_all(replace(plan, fixed=folder.fixed)))
        plan = folder.read()
        held = [folder.settings(trial, plan) for trial in plan.trials]
        assert [(each["teachers"], each["teacher_sha256"]) for each in held] == [(str(one), [checksum])] * runs
        one.write_text("another")


def test_names_of_teachers_become_exact_references() -> None:
    fixed = {"all": (FixedTeacher("a", "1"), FixedTeacher("b", "2")), "x": (FixedTeacher("/x", "3"),)}
    whole = with_fixed_teachers({"teachers": ["x", "all"]}, fixed)
    assert whole == {"teachers": "/x,a,b", "teacher_sha256": ["3", "1", "2"]}
    given = {"teachers": "x", "teacher_sha256": ["9"]}
    assert with_fixed_teachers(given, fixed) == {**given, "teachers": "/x"}, "so that the run refuses the file"
    assert with_fixed_teachers({"teachers": "x,@own"}, fixed) == {"teachers": "/x,@own"}
    for settings in ({}, {"teachers": "@own"}, {"teachers": "x", "answers": "file"}):
        assert with_fixed_teachers(settings, fixed) == settings


def test_a_sweep_may_gain_runs_and_not_change_them(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.prepare(plan_of(settings={"name": "x", "seed": {"range": 2}}))
    folder.prepare(plan_of(settings={"name": "x", "seed": {"range": 3}}))
    assert [trial.name for trial in folder.read().trials] == ["s1", "s2", "s3"]
    with pytest.raises(UserError, match="holds another sweep: run s1 differs in steps"):
        folder.prepare(plan_of(settings={"name": "x", "steps": 11, "seed": {"range": 3}}))
    with pytest.raises(UserError, match="it has a run s3, which this sweep does not have"):
        folder.prepare(plan_of(settings={"name": "x", "seed": {"range": 2}}))
    with pytest.raises(UserError, match=r"scale 1, this is 0\.5"):
        folder.prepare(replace(folder.read(), scale=0.5))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(UserError, match="is not the folder of a sweep"):
        SweepFolder(tmp_path).prepare(plan_of(settings={"name": "x"}))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        SweepFolder(tmp_path / "file" / "sweep").prepare(plan_of(settings={"name": "x"}))


def test_only_one_runs_a_sweep(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.prepare(plan_of(settings={"name": "x"}))
    with folder.lock(), pytest.raises(UserError, match="is being run by another kfrl"):
        folder.lock()
    folder.lock().close()


def test_students_wait_for_their_teachers(tmp_path: Path) -> None:
    plan = plan_of(teachers={"big": {"name": "x"}}, settings={"name": "x", "teachers": "@big"})
    folder = SweepFolder(tmp_path)
    assert [[trial.name for trial in level] for level in levels(plan)] == [["teacher-big"], ["s1"]]
    student = plan.trial("s1")
    states = {"teacher-big": TrialState(FAILED), "s1": TrialState()}
    assert untaught(student, plan, states) == ["big"]
    assert not untaught(student, plan, states | {"teacher-big": TrialState(FINISHED)})
    settings = folder.settings(student, plan)
    assert settings["teachers"] == str(tmp_path / "teacher-big")
    assert settings["run_dir"] == str(tmp_path / "s1")


def test_runs_of_a_sweep_are_one_arm_whatever_was_drawn(tmp_path: Path) -> None:
    plan = plan_of(
        settings={"name": {"grid": ["x", "y"]}, "points": {"uniform": [0, 1]}, "seed": {"range": 2}},
        arms={"one": {}, "two": {"steps": 3}},
        teachers={"big": {"name": "x"}},
    )
    folder = SweepFolder(tmp_path / "sweep")
    folder.prepare(plan)
    states = folder.states(plan)
    folder.write_states(plan, states | {"two-y-s2": TrialState(PRUNED)})
    named = {trial.name: member_of_sweep(folder.path / trial.name) for trial in plan.trials[1:-1]}
    assert set(named.values()) == {"one", "two"}
    assert named["one-x-s1"] == named["one-y-s2"] == "one"
    with pytest.raises(UserError, match="pruned by early stopping"):
        member_of_sweep(folder.path / "two-y-s2")
    with pytest.raises(UserError, match="a teacher that the sweep trained"):
        member_of_sweep(folder.path / "teacher-big")
    assert member_of_sweep(tmp_path / "other") is None
