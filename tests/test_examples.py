"""The examples run as their first lines say."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from agents.launch import Session
from agents.teachers.formats import load_agent
from envs.atari import AtariEnvs
from envs.protocols import get_protocol
from kfrl.cli.main import main
from kfrl.runs.metrics import read_metrics
from kfrl.training.session import Silent

EXAMPLES = Path(__file__).parents[1] / "examples"
GAME = "--game Pong --algo a2c --envs-per-worker 2 --steps 64 --curve-points 0 --eval-episodes 0 --run-dir run"


def test_every_example_is_tested() -> None:
    tested = {"run_from_python.py", "flow_in_your_own_loop.py", "games_method.py", "images_method.py", "play_onnx.py"}
    tested |= {"side_by_side.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_an_exported_student_plays_the_same_game_without_kfrl(
    finished_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, seed = finished_run(tmp_path / "run"), 7
    assert main(["export", str(run)]) == 0
    assert "play_onnx.py" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["play_onnx.py", str(run / "exported.onnx"), str(seed)])
    runpy.run_path(str(EXAMPLES / "play_onnx.py"), run_name="__main__")

    student = load_agent(run / "student.safetensors").net
    envs, chance = AtariEnvs(get_protocol("paper", "Breakout"), 1), np.random.default_rng(seed)
    obs, games, steps = envs.reset(seed), (), 0
    while not games:
        logits = student(torch.from_numpy(obs))[0].numpy()
        step = envs.step((logits + chance.gumbel(size=logits.shape)).argmax(1))
        obs, games, steps = step.obs, step.episodes, steps + 1
    assert capsys.readouterr().out == f"breakout: {games[0].score:,.0f} points in {steps:,} steps\n"


def test_the_player_needs_neither_kfrl_nor_torch() -> None:
    lines = (EXAMPLES / "play_onnx.py").read_text().splitlines()
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"json", "sys", "ale_py", "gymnasium", "numpy", "onnxruntime"}


@pytest.mark.slow
def test_a_run_from_python(tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLES / "run_from_python.py"), "200"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(":", 1) for line in done.stdout.splitlines())
    folder = tmp_path / said["folder"].strip()
    assert json.loads(said["scores"]) == json.loads((folder / "eval.json").read_text())["scores"]


def test_knowledge_flow_in_a_loop_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "flow_in_your_own_loop.py"), run_name="__main__")
    said = dict(line.rsplit(maxsplit=3)[:2] for line in capsys.readouterr().out.splitlines())
    right = {name.strip(): float(percent) for name, percent in said.items()}
    assert right["teacher"] > right["student after flow"] > right["student alone"] > 50


def test_a_method_of_ones_own_for_games(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.engines.synchronous.TICK_SECONDS", -1.0)  # a row an update
    method = ["--method", str(EXAMPLES / "games_method.py"), "--teachers", "zoo:pong", "--strength", "0.5"]
    assert main(["train", *GAME.split(), *method]) == 0
    assert "games-method-a2c" in capsys.readouterr().out
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["methods"] == {"games-method": {"strength": 0.5, "ends_at": 0.5}}
    assert Path(config["method"]) == EXAMPLES / "games_method.py"
    rows = [row["losses/kickstarting"] for row in read_metrics(Path("run/metrics.csv")) if "losses/kickstarting" in row]
    assert rows[0] > 0 == rows[-1]
    assert main(["train", "--config", "run/config.yaml", "--ends-at", "0.2", "--run-dir", "again"]) == 0
    again = yaml.safe_load(Path("again/config.yaml").read_text())
    assert again["methods"] == {"games-method": {"strength": 0.5, "ends_at": 0.2}}


def test_a_method_of_ones_own_for_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--data digits --net mlp-8 --epochs 2 --batch-size 256 --penalty 0.2".split()
    assert main(["supervised", "train", *flags, "--method", str(EXAMPLES / "images_method.py")]) == 0
    (folder,) = tmp_path.glob("runs/digits/images-method/*")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["methods"] == {"images-method": {"penalty": 0.2}}
    assert all(-0.2 * 2.31 < row["losses/confidence"] < 0 for row in read_metrics(folder / "metrics.csv"))
    assert main(["supervised", "train", "--resume", str(folder)]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_moving_picture_of_a_run(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {
        "convs": ((4, 8, 8), (4, 4, 2)),
        "hidden": 8,
        "curve_points": 0,
        "flow": {"fold_observations": 0, "choose_channels": False},
    }
    session = Session.start(
        {**small, "game": "Pong", "teachers": "zoo:pong", "algo": "a2c", "steps": 3000, "run_dir": Path("run")}
    )
    session.prepare(Silent())
    session.trainer.save()
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "run", "out.gif", "3", "2", "12"])
    runpy.run_path(str(EXAMPLES / "side_by_side.py"), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said[:3]] == ["teacher", "student with links", "student alone"]
    with Image.open("out.gif") as picture:
        assert picture.n_frames == 5
        assert picture.size == (3 * (2 * 160 + 4), 24 + 2 * 210 + 24)
