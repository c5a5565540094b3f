"""`kfrl sensitivity` on runs of every kind."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from agents.config import TrainConfig
from agents.launch import Session
from agents.sensitivity import Perturbation, Place, ProgressiveRun
from agents.teachers.formats import Card, load_agent, save_agent
from envs.atari import ALL_ACTIONS
from kfrl.cli.main import main
from kfrl.nets.atari.net import AtariNet

SMALL = "--steps 40 --algo a2c --envs-per-worker 2 --convs 16 8 8 4 4 2 --hidden 8 --curve-points 0".split()


@pytest.fixture
def trained(tmp_path: Path, short_games: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    column = AtariNet(18, ((16, 8, 8), (8, 4, 2)), 6)
    save_agent(tmp_path / "seaquest.safetensors", column, Card("seaquest", ALL_ACTIONS, column.arch))
    words = "train --game Seaquest --method progressive --teachers ./seaquest.safetensors --run-dir run".split()
    assert main([*words, *SMALL, "--eval-episodes", "0"]) == 0
    return tmp_path / "run"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_measured(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Noise takes nothing from a student of 40 steps, so the scores are made up: every game is below half.
    monkeypatch.setattr(ProgressiveRun, "clean_and_random", lambda run, episodes, seed: (1e6, 0.0))
    monkeypatch.setattr("agents.sensitivity.MOST_FACTORS", 1)
    command = ["sensitivity", "run", "--steps", "40", "--episodes", "1", "--output", "found"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Seaquest after 40 steps, 40 observations" in said
    assert "APS is at 500,000.0 points: 1,000,000.0 points without noise" in said.replace("\n", " ")
    table = rows(tmp_path / "found/sensitivity.csv")
    assert [(row["layer"], row["column"]) for row in table] == [
        (layer, column) for layer in ("conv1", "conv2", "fc") for column in ("seaquest", "student")
    ]
    for first, second in zip(table[::2], table[1::2], strict=True):
        for share in ("fisher_share", "aps"):
            assert float(first[share]) + float(second[share]) == pytest.approx(1.0)
    # Only conv1 is as wide as the column's.
    assert [row["afs"] == "nan" for row in table] == [False, False, True, True, True, True]
    assert len(rows(tmp_path / "found/sensitivity-features.csv")) == 2 * 16 + 8 + 4 + 6 + 8
    assert len(rows(tmp_path / "found/sensitivity-noise.csv")) == 6 * 2
    assert (tmp_path / "found/sensitivity.png").stat().st_size > 1000
    assert not (trained / "sensitivity.csv").exists()


def test_without_games_there_is_no_aps(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", "run", "--steps", "20", "--episodes", "0"]) == 0
    assert "APS is left out" in capsys.readouterr().out
    assert {row["aps"] for row in rows(trained / "sensitivity.csv")} == {"nan"}
    assert (trained / "sensitivity.png").exists()
    assert not (trained / "sensitivity-noise.csv").exists()


def test_a_student_below_random_play_has_no_aps(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ProgressiveRun, "clean_and_random", lambda run, episodes, seed: (60.0, 60.0))
    assert main(["sensitivity", "run", "--steps", "20"]) == 0
    assert "APS is left out, because noise can take nothing" in capsys.readouterr().out


def test_afs_is_kept_when_the_games_are_interrupted(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(run: ProgressiveRun, episodes: int, seed: int) -> tuple[float, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(ProgressiveRun, "clean_and_random", interrupt)
    assert main(["sensitivity", "run", "--steps", "20"]) == 130
    assert {row["aps"] for row in rows(trained / "sensitivity.csv")} == {"nan"}


def test_what_noise_has_shown_is_kept_when_the_games_are_interrupted(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    halves = iter((0.5, 1.5, math.inf))

    def perturb(run: ProgressiveRun, place: Place, *rest: object) -> Perturbation:
        half = next(halves, None)
        if half is None:
            raise KeyboardInterrupt
        return Perturbation({half: 1.0}, half)

    monkeypatch.setattr(ProgressiveRun, "clean_and_random", lambda run, episodes, seed: (1e6, 0.0))
    monkeypatch.setattr(ProgressiveRun, "perturb", perturb)
    assert main(["sensitivity", "run", "--steps", "20"]) == 130
    table = rows(trained / "sensitivity.csv")
    assert [row["aps"] for row in table] == ["0.75", "0.25", "nan", "nan", "nan", "nan"]
    assert [row["half_variance"] for row in table] == ["0.5", "1.5", "inf", "nan", "nan", "nan"]
    said = capsys.readouterr().err
    assert "APS 2 of 6: conv1 of student, half at 1.5 times the variance\n" in said
    assert "APS 3 of 6: conv2 of seaquest, never half\n" in said


def test_a_game_that_is_not_there_is_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = load_agent(trained / "student.safetensors")
    save_agent(agent.path, agent.net, replace(agent.card, game="seaquests", protocol={}))
    assert main(["sensitivity", "run"]) == 2
    assert "Unknown game 'seaquests'. Did you mean 'Seaquest'?" in capsys.readouterr().err


def test_other_runs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sensitivity", "nowhere"]) == 2
    assert "nowhere is not the folder of a run" in capsys.readouterr().err
    Session.start(TrainConfig(game="Pong", run_dir=Path("scratch")))
    assert main(["sensitivity", "scratch"]) == 2
    assert "was trained by a3c, whose net has no frozen columns" in capsys.readouterr().err.replace("\n", " ")
    Session.start(TrainConfig(game="Pong", method="progressive", teachers="zoo:pong", run_dir=Path("unborn")))
    assert main(["sensitivity", "unborn"]) == 2
    assert "unborn" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/sensitivity*"))
