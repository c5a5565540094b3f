"""What Ray's actors do, without Ray's processes: those are in tests/kfrl/cli/test_sweep.py."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kfrl.sweep.folder import FAILED, FINISHED, PRUNED, RUNNING, STOPPED, SweepFolder, SweepPlan, TrialState, domain_of
from kfrl.sweep.space import EarlyStopping, Spec, make_trials

pytest.importorskip("ray", reason="Ray Tune is not installed: pip install 'kfrl[sweep]'")
from kfrl.sweep import driver
from kfrl.sweep.driver import Runner, _Table


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("counting", None)

    def build(early: EarlyStopping | None = None, **settings: Any) -> tuple[SweepFolder, SweepPlan]:
        plan = SweepPlan("counting", (), early_stopping=early)
        trials = make_trials(Spec(settings={"name": "x", **settings}), domain_of(plan))
        plan = replace(plan, trials=tuple(trials))
        folder = SweepFolder(tmp_path / "sweep")
        folder.prepare(plan)
        return folder, plan

    return build


def runner(folder: SweepFolder, trial: str = "s1", state: str = "waiting") -> Runner:
    return Runner({"one": {"sweep": str(folder.path), "trial": trial, "state": state}})


def to_the_end(one: Runner) -> dict[str, Any]:
    """A step takes a second at most: on a busy machine a run needs several."""
    while not (result := one.step()).get("done"):
        pass
    return result


def test_a_run_is_trained_and_reported(sweep: Any) -> None:
    folder, _ = sweep()
    result = to_the_end(runner(folder))
    assert (result["state"], result["done"], result["share"], result["objective"]) == (FINISHED, True, 1.0, 10.0)
    assert json.loads((folder.path / "s1" / "eval.json").read_text())["began"] == 1


def test_a_run_that_is_stopped_writes_its_checkpoint_and_goes_on_from_there(sweep: Any) -> None:
    folder, _ = sweep(does="wait")
    one = runner(folder)
    while (result := one.step())["share"] < 0.5:
        pass
    assert result["state"] == RUNNING
    one.cleanup()
    assert (folder.path / "s1" / "log.txt").read_text() == "stopped at 5"
    assert to_the_end(runner(folder, state=STOPPED))["state"] == FINISHED
    assert json.loads((folder.path / "s1" / "eval.json").read_text())["began"] == 6


def test_bad_input_fails_for_good_and_a_crash_is_tunes(sweep: Any) -> None:
    folder, plan = sweep(does={"grid": ["refuse", "raise"]})
    bad, crash = plan.trials
    result = to_the_end(runner(folder, bad.name))
    assert (result["state"], result["done"]) == (FAILED, True)
    assert folder.error_file(bad).read_text() == "No such thing."
    with pytest.raises(RuntimeError, match="Something broke"):
        to_the_end(runner(folder, crash.name))
    assert folder.error_file(crash).read_text().endswith("RuntimeError: Something broke.\n")


def test_a_process_goes_on_with_another_run(sweep: Any) -> None:
    folder, _ = sweep(seed={"range": 2})
    one = runner(folder)
    to_the_end(one)
    assert one.reset_config({"one": {"sweep": str(folder.path), "trial": "s2", "state": "waiting"}})
    assert to_the_end(one)["state"] == FINISHED
    assert (folder.path / "s2" / "eval.json").is_file()


def test_runs_that_are_over_tell_asha_their_curves_and_train_no_more(sweep: Any) -> None:
    folder, _ = sweep(EarlyStopping(), points=2.0)
    to_the_end(runner(folder))
    (folder.path / "s1" / "eval.json").unlink()
    again = runner(folder, state=PRUNED)
    told = [again.step() for _ in range(11)]
    assert [(one["share"], one["objective"]) for one in told[:-1]] == [(k / 10, 2.0 * k) for k in range(1, 11)]
    assert told[-1]["done"] and told[-1]["state"] == PRUNED
    assert not (folder.path / "s1" / "eval.json").exists()


def test_under_asha_a_run_waits_at_each_new_objective_for_its_judgement(sweep: Any) -> None:
    folder, _ = sweep(EarlyStopping())
    one = runner(folder)
    for step in (1, 2, 3):
        while "objective" not in (result := one.step()):
            pass
        assert (result["state"], result["permille"], result["objective"]) == (RUNNING, 100 * step, step)
        # It has not gone on to the next one.
        assert (folder.path / "s1" / "metrics.csv").read_text().splitlines()[-1] == f"{step},{float(step)}"
    one.cleanup()
    assert (folder.path / "s1" / "log.txt").read_text() == "stopped at 3"
    assert not (folder.path / "s1" / "eval.json").exists()


def test_asha_ends_no_teacher_that_other_runs_wait_for() -> None:
    scheduler = driver._Asha({"teacher"}, **driver._rungs(EarlyStopping(0.5, 2.0)))
    trials = {name: SimpleNamespace(trial_id=name, config={"one": {"trial": name}}) for name in ("a", "b", "teacher")}
    verdicts = {}
    for name, objective in (("a", 3.0), ("b", 1.0), ("teacher", 0.0)):
        scheduler.on_trial_add(None, trials[name])
        verdicts[name] = scheduler.on_trial_result(None, trials[name], {"permille": 500, "objective": objective})
    assert verdicts == {"a": "CONTINUE", "b": "STOP", "teacher": "CONTINUE"}


class Trial:
    """As much of Tune's as the table reads."""

    def __init__(self, name: str, status: str, **result: Any) -> None:
        self.config, self.status = {"one": {"trial": name}}, status
        self.last_result = {"done_units": 5, "share": 0.5, **result}


def table(sweep: Any) -> _Table:
    folder, plan = sweep(seed={"range": 3})
    return _Table(folder, plan, {trial.name: TrialState() for trial in plan.trials})


def test_what_asha_ends_is_pruned_and_never_finished(sweep: Any) -> None:
    one = table(sweep)
    cut = Trial("s1", "TERMINATED", state=RUNNING, objective=1.0)
    one.on_trial_complete(1, [cut], cut)
    one.on_step_end(1, [cut, Trial("s2", "RUNNING", state=RUNNING)])
    assert [one.states[name].state for name in ("s1", "s2", "s3")] == [PRUNED, RUNNING, "waiting"]
    assert one._folder.states(one._plan)["s1"].state == PRUNED


def test_what_a_signal_ends_is_not_pruned(sweep: Any) -> None:
    one = table(sweep)
    cut = Trial("s1", "TERMINATED", state=RUNNING)
    driver._STOP.set()
    try:
        one.on_trial_complete(1, [cut], cut)
        one.on_step_end(1, [cut])
    finally:
        driver._STOP.clear()
    assert one.states["s1"].state == STOPPED
    assert one.states["s1"].share == 0.5


def test_a_run_that_died_too_often_is_failed_with_its_last_words(sweep: Any) -> None:
    one = table(sweep)
    one._folder.error_file(one._plan.trial("s1")).write_text("Traceback\n  line\nRuntimeError: Something broke.\n")
    one.on_step_end(1, [Trial("s1", "ERROR"), Trial("s2", "ERROR")])
    assert one.states["s1"].error == "RuntimeError: Something broke."
    assert "died" in one.states["s2"].error
    assert one.states["s1"].state == FAILED


def test_what_runs_beside_the_trials_does_without_torch() -> None:
    code = "import sys, kfrl.sweep.driver, agents.trials, kfrl.supervised.trials; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )
