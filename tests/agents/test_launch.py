"""Runs that Python starts: from any thread, from plain values, with a result as an object."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import agents
from agents.config import TrainConfig
from agents.engines.a3c import A3CTrainer
from agents.launch import Session
from agents.run import resolve
from agents.teachers.formats import Card, load_agent, save_agent
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import latest_checkpoint, this_version
from kfrl.runs.metrics import read_metrics
from kfrl.supervised.config import SupervisedConfig
from kfrl.training.session import Silent, TrainingError

TINY: dict[str, Any] = {
    **{"game": "Breakout", "algo": "a2c", "envs_per_worker": 2, "steps": 64, "hidden": 8, "convs": ((4, 8, 8),)},
    **{"curve_points": 0, "eval_episodes": 0},
}


def test_a_run_in_another_thread_gives_its_student(tmp_path: Path, noise_games: None) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(agents.train, {**TINY, "run_dir": tmp_path / "run"}).result()
    assert result.folder == tmp_path / "run"
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["steps"] == 64
    saved = load_agent(tmp_path / "run" / "student.safetensors").net.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in result.student.state_dict().items())
    assert result.evaluation == {}
    assert (tmp_path / "run" / "curves.png").is_file()


def test_the_same_settings_train_the_same_student_from_an_object(tmp_path: Path, noise_games: None) -> None:
    one, two = (agents.train(TrainConfig(**TINY, run_dir=tmp_path / name)).student for name in ("one", "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


class Stopper(Silent):
    """Stops the run at its first status, as Ctrl-C does."""

    session: Session

    def update(self, status: Any) -> None:
        self.session.trainer.stop(2)


def test_a_run_that_was_stopped_goes_on_and_is_scored_once(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.engines.synchronous.TICK_SECONDS", -1.0)
    stopper = Stopper()
    stopper.session = Session.start({**TINY, "run_dir": tmp_path / "run", "eval_episodes": 1})
    stopped = stopper.session.complete(stopper)
    assert (stopped.stopped_by, stopped.evaluation) == (2, {})
    result = agents.resume(tmp_path / "run")
    assert result.evaluation["steps"] == 70  # whole rollouts of 2 games x 5 steps
    assert result.evaluation == json.loads((tmp_path / "run" / "eval.json").read_text())
    assert agents.resume(tmp_path / "run").evaluation == result.evaluation


def test_the_rate_is_known_before_the_first_row_of_metrics(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.engines.synchronous.TICK_SECONDS", -1.0)
    monkeypatch.setattr("agents.trainer.ROWS", 1)
    monkeypatch.setattr("agents.trainer.PACE", 0.0)
    seen: list[tuple[int, float, float | None]] = []

    class Watcher(Silent):
        def update(self, status: Any) -> None:
            seen.append((status.done, status.rate, status.eta_sec))

    agents.train({**TINY, "run_dir": tmp_path / "run"}, display=Watcher())
    done, rate, eta = seen[2]
    assert 0 < done < 64
    assert rate > 0.0
    assert eta == pytest.approx((64 - done) / rate)


def test_the_rate_leaves_out_the_time_until_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = object.__new__(A3CTrainer)
    trainer._rate, trainer._pace = 0.0, (0.0, 1000)
    for now, step in ((40.0, 1000), (45.0, 1100), (55.0, 1400)):
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        trainer._measure_rate(step, 10.0)
    # 400 steps in the 15 seconds after the last look without one.
    assert trainer._rate == pytest.approx(400 / 15)


def test_a_failure_is_an_error_that_says_how_to_resume(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.engines.synchronous.a3c_terms", lambda *_: 1 / 0)
    with pytest.raises(TrainingError, match=r"(?s)division by zero.*kfrl train --resume .*run"):
        agents.train({**TINY, "run_dir": tmp_path / "run"})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({**TINY, "step": 3}, "Unknown key step. Did you mean steps?"),
        ({**TINY, "flow": {"transform_rnk": 3}}, "Did you mean transform_rank?"),
        ({**TINY, "steps": 0}, "steps: Input should be greater than or equal to 1"),
        (SupervisedConfig(data="digits"), "Unknown key data"),
    ],
)
def test_settings_that_do_not_exist_are_named(settings: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        agents.train(settings)
    assert complaint in str(error.value)


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exists. Give another --run-dir \(run_dir\), or .*kfrl train --resume"):
        agents.train({**TINY, "run_dir": tmp_path})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, state: tensors.pop("adam_steps"), "it has no 'adam_steps'"),
        (lambda tensors, state: tensors.update(adam_steps=torch.zeros(7)), "shape \\[7\\]"),
        (lambda tensors, state: state.pop("updates"), "it has no 'updates'"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused_by_the_names_of_both(
    change: Callable[[dict[str, Tensor], dict[str, Any]], object], words: str, tmp_path: Path
) -> None:
    session = Session.start({**TINY, "run_dir": tmp_path / "run"})
    session.prepare(Silent())
    session.trainer.save()
    written = latest_checkpoint(session.run.folder.checkpoints)
    assert written.version == this_version()
    Session.resume(tmp_path / "run").prepare(Silent())
    change(written.tensors, written.state)
    # As early versions wrote it: without a word of themselves.
    save_file(written.tensors, written.path, {"state": json.dumps(written.state)})
    with pytest.raises(UserError, match=f"written by an earlier version of kfrl, and this version.*: .*{words}"):
        Session.resume(tmp_path / "run").prepare(Silent())


def test_settings_of_another_version_are_refused_by_the_names_of_both(tmp_path: Path) -> None:
    Session.start({**TINY, "run_dir": tmp_path / "run"})
    with (tmp_path / "run" / "config.yaml").open("a") as file:
        file.write("handover_start: 0.5\n")
    with pytest.raises(UserError, match=r"handover_start.*another version started the run \(an earlier.*this one is"):
        Session.resume(tmp_path / "run")


FORMER = "flow:\n  dependence_coef: 0.1\n  handover_coef: 1.0\nfine_tune:\n  heads_only: false\n"


def test_a_run_of_an_earlier_version_goes_on_where_its_method_can(tmp_path: Path, noise_games: None) -> None:
    session = Session.start({**TINY, "run_dir": tmp_path / "run"})
    session.prepare(Silent())
    session.trainer.save()
    config = tmp_path / "run" / "config.yaml"
    # Earlier versions wrote the settings of all methods.
    config.write_text(re.sub(r"methods: {}\n", FORMER, config.read_text()))
    assert "handover_coef" in config.read_text()
    assert Session.resume(tmp_path / "run").complete(Silent()).stopped_by is None


def test_a_flow_of_an_earlier_version_is_refused_by_the_names_of_both(tmp_path: Path) -> None:
    settings = {**TINY, "method": "knowledge-flow", "teachers": "seaquest", "steps": 100_000}
    Session.start({**settings, "run_dir": tmp_path / "run"})
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("dependence_coef:", "handover_coef: 1.0\n    dependence_coef:"))
    with pytest.raises(UserError, match=r"handover_coef.*another version started the run \(an earlier.*this one is"):
        Session.resume(tmp_path / "run")


SCRIPT = """
import agents
print("main", flush=True)
small = {"workers": 2, "envs_per_worker": 1, "curve_points": 0, "eval_episodes": 0}
result = agents.train({"game": "Pong", "steps": 40, **small})
print(type(result.student).__name__, flush=True)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_starts_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()) == (0, ["main", "AtariNet"]), done.stderr


def test_a_run_on_a_flavour_names_it_in_its_folder_config_and_card() -> None:
    run = resolve(TrainConfig(**TINY | {"game": "freeway:m1", "seed": 3}))
    assert run.folder.path.parts[:3] == ("runs", "freeway-m1d0", "a2c")
    assert (run.config.game, run.protocol.game, run.spec.game) == ("Freeway:m1d0", "freeway:m1d0", "freeway:m1d0")
    assert run.card(0, run.method().build(run.spec, ())).game == "freeway:m1d0"
    with pytest.raises(UserError, match="the run's own game"):
        resolve(
            TrainConfig(
                **TINY | {"game": "freeway:m1", "algo": "a3c", "method": "distral", "source_games": "Freeway:M1D0"}
            )
        )


def test_a_run_that_stays_linked_counts_the_play_of_its_choice(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.methods.knowledge_flow.CHOICE_OBSERVATIONS", 16)
    linked = {"method": "knowledge-flow", "teachers": "zoo:pong", "methods": {"knowledge-flow": {"fold_at": None}}}
    session = Session.start({**TINY, **linked, "steps": 128, "run_dir": tmp_path / "run"})
    session.prepare(Silent())
    assert session.trainer.step == 64  # 16 observations, every fourth step
    assert 128 <= session.trainer.train().step < 128 + 10  # rollouts of 2 games x 5 steps


@pytest.mark.parametrize(("actor", "games"), [(None, 0), ("student", 8)])
def test_the_games_of_a_teacher_are_no_training_games_of_its_student(
    actor: str | None, games: int, tmp_path: Path, noise_games: None
) -> None:
    net = AtariNet(4, ((4, 8, 8),), 8)
    save_agent(tmp_path / "expert.safetensors", net, Card("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"), net.arch))
    distilled = {"method": "policy-distillation", "teachers": str(tmp_path / "expert.safetensors")}
    own = {"policy-distillation": {"distill_actor": actor}}
    session = Session.start({**TINY, **distilled, "methods": own, "run_dir": tmp_path / "run"})
    session.prepare(Silent())
    session.trainer.train()
    assert sum(report["games"] for report in session.trainer.training_report) == games
    (last,) = {name for row in read_metrics(tmp_path / "run" / "metrics.csv") for name in row if "return" in name}
    assert last == ("charts/episodic_return" if games else "charts/guided_return")


GUIDED = """
from agents.methods.base import Method, Phase

class Guided(Method):
    def phases(self, spec, teachers):
        return (Phase((spec,), 40, "guided", guided=True), Phase((spec,), 40, "own"))

METHOD = Guided
"""


def test_frames_that_pass_while_another_net_acts_have_no_report(tmp_path: Path, noise_games: None) -> None:
    (tmp_path / "guided.py").write_text(GUIDED)
    own = {"method": str(tmp_path / "guided.py"), "steps": 80, "report_frames": (80, 240)}
    session = Session.start({**TINY, **own, "run_dir": tmp_path / "run"})
    session.prepare(Silent())
    session.trainer.train()
    # Games of 8 steps in 2 environments, rollouts of 10 steps: 240 frames are 60 steps, 20 of them by the net's own.
    assert [(report["frames"], report["games"]) for report in session.trainer.training_report] == [(240, 2), (320, 4)]


def test_games_of_an_earlier_phase_with_another_net_are_no_training_games(tmp_path: Path, noise_games: None) -> None:
    (tmp_path / "phases.py").write_text(GUIDED.replace("guided=True", "guided=False"))
    session = Session.start({**TINY, "method": str(tmp_path / "phases.py"), "steps": 80, "run_dir": tmp_path / "run"})
    session.prepare(Silent())
    session.trainer.train()
    # The last 40 of the 80 steps, in games of 8 steps in 2 environments.
    assert [(report["frames"], report["games"]) for report in session.trainer.training_report] == [(320, 4)]


def test_the_last_training_games_are_noted_at_given_frames_and_kept_by_a_checkpoint(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.trainer.RECENT", 6)
    session = Session.start({**TINY, "report_frames": (128, 200, 10**6), "run_dir": tmp_path / "run"})
    session.prepare(Silent())
    trainer = session.trainer
    trainer.train()
    # Rollouts of 2 games x 5 steps, games of 8 steps: after 4 of them (160 frames) 4 games, after 5 (200 frames) 6.
    report = trainer.training_report
    assert report == [
        {"frames": 128, "games": 4, "mean": 8.0},
        {"frames": 200, "games": 6, "mean": 8.0},
        {"frames": 280, "games": 6, "mean": 8.0},
    ]
    again = Session.resume(tmp_path / "run")
    again.prepare(Silent())
    assert again.trainer.training_report == report
    fake = SimpleNamespace(to_dict=lambda: {"scores": [1.0], "mean": 1.0, "protocol": {}})
    assert again.finish(lambda policy, title: fake) == {}  # no final games, no scores
    again.run = replace(again.run, config=replace(again.run.config, eval_episodes=1))
    assert again.finish(lambda policy, title: fake)["training"] == report
