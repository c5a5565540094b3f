"""Rows go to Weights & Biases (offline) and MLflow (files) too, through the real packages where they are installed."""

import json
from pathlib import Path
from typing import Any

import pytest

import agents.launch
import kfrl.supervised.launch
from kfrl.errors import UserError
from kfrl.runs.loggers import Loggers, check_loggers
from kfrl.runs.metrics import MetricsWriter, read_metrics
from kfrl.training.session import Silent

SETTINGS: dict[str, Any] = {"game": "Pong", "flow": {"fold_at": 0.0}, "convs": ((4, 8, 8),), "run_dir": Path("x")}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "a-run"
    path.mkdir(parents=True)
    return path


def log(run: Path, names: str, rows: dict[int, float], resume_at: int | None = None) -> None:
    loggers = Loggers(names, run, SETTINGS)
    metrics = MetricsWriter(run, resume_at, loggers)
    for step, value in rows.items():
        metrics.log(step, {"charts/episodic_return": value, "flow/p_teacher/zoo:pong/fc": 0.5})
    metrics.close()
    loggers.close()


def test_mlflow_has_every_row_and_a_resumed_run_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log(run, "mlflow", {10: 1.0, 20: 2.0})
    log(run, "mlflow", {30: 4.0}, resume_at=20)
    client = mlflow.MlflowClient((run.parents[1] / "mlruns").as_uri())
    (held,) = client.search_runs([client.get_experiment_by_name("kfrl").experiment_id])
    assert (held.info.run_name, held.info.status) == ("a-run", "FINISHED")
    rows = client.get_metric_history(held.info.run_id, "charts/episodic_return")
    assert [(row.step, row.value) for row in rows] == [(10, 1.0), (20, 2.0), (30, 4.0)]
    assert "flow/p_teacher/zoo_pong/fc" in held.data.metrics
    assert held.data.params["flow.fold_at"] == "0.0"
    assert held.data.params["convs"] == "((4, 8, 8),)"


def test_weights_and_biases_keeps_them_in_the_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log(run, "wandb", {10: 1.0, 20: 2.0})
    # Its own process writes the file, and is waited for here.
    wandb.teardown()
    identity = json.loads((run / "loggers.json").read_text())["wandb"]
    (held,) = (run / "wandb").glob("offline-run-*/*.wandb")
    assert identity in held.name
    text = held.read_bytes()
    assert b"charts/episodic_return" in text
    assert b"fold_at" in text


def test_a_run_that_logs_nothing_starts_nothing(run: Path) -> None:
    Loggers("wandb,mlflow", run, SETTINGS).close()
    log(run, "", {10: 1.0})
    assert not (run / "loggers.json").exists()
    assert [row["global_step"] for row in read_metrics(run / "metrics.csv")] == [10]


def test_a_logger_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_loggers("")
    with pytest.raises(UserError, match=r"Unknown logger 'wand'\. Did you mean 'wandb'"):
        check_loggers("wand")
    monkeypatch.setattr("kfrl.runs.loggers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--log-to mlflow needs a package .*: pip install mlflow-skinny"):
        check_loggers("mlflow")


@pytest.mark.parametrize("domain", ["game", "images"])
def test_runs_of_both_domains_log_there(
    domain: str, run: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    common: dict[str, Any] = {"log_to": "mlflow", "run_dir": Path("logged")}
    game = {"game": "Breakout", "algo": "a2c", "envs_per_worker": 2, "steps": 20, "hidden": 8, "convs": ((4, 8, 8),)}
    images = {"data": "digits", "net": "mlp-4", "epochs": 1, "train_images": 100}
    session = (
        agents.launch.Session.start({**game, **common, "curve_points": 0})
        if domain == "game"
        else kfrl.supervised.launch.Session.start({**images, **common})
    )
    session.prepare(Silent())
    session.trainer.train()
    (held,) = mlflow.MlflowClient((run.parents[1] / "mlruns").as_uri()).search_runs(["0", *_experiments(run)])
    assert {"game": "losses/policy", "images": "losses/task"}[domain] in held.data.metrics
    assert held.data.params["seed"] == "1"
    assert held.info.status == "FINISHED"


def _experiments(run: Path) -> list[str]:
    return [path.name for path in (run.parents[1] / "mlruns").iterdir() if path.name.isdigit()]
