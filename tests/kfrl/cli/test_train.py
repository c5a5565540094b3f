"""`kfrl train` as a user types it: one real run through its whole life, and every kind of bad input."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml

from agents.config import TrainConfig
from agents.run import resolve
from agents.teachers.formats import Card, load_agent, save_agent
from kfrl.cli.main import main
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.seeding import stream

pytestmark = pytest.mark.usefixtures("short_games")

TINY = [
    *("--game", "Breakout", "--steps", "300", "--workers", "2", "--envs-per-worker", "1"),
    *("--curve-points", "1", "--curve-episodes", "1", "--eval-episodes", "2"),
]


def kfrl(cwd: Path, *arguments: str) -> str:
    """What the command prints in the folder `cwd`."""
    before, out = Path.cwd(), io.StringIO()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out):
            assert main(list(arguments)) == 0, out.getvalue()
    finally:
        os.chdir(before)
    return out.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, short_games: None) -> tuple[Path, str]:
    """A finished scratch run in ./runs, as its user finds it, and what it printed."""
    cwd = tmp_path_factory.mktemp("user")
    return cwd, kfrl(cwd, "train", *TINY)


def only_run(cwd: Path, pattern: str) -> Path:
    (folder,) = cwd.glob(f"runs/{pattern}")
    return folder


def test_run_leaves_everything_the_design_names(finished: tuple[Path, str]) -> None:
    cwd, printed = finished
    folder = only_run(cwd, "breakout/a3c/none-s1-*")
    assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} == {
        *("config.yaml", "student.safetensors", "checkpoint", "metrics.csv", "eval.json", "log.txt"),
        "curves.png",
    }
    assert list(folder.glob("events.out.tfevents.*"))
    scores = json.loads((folder / "eval.json").read_text())
    assert len(scores["scores"]) == 2
    student = folder / "student.safetensors"
    assert scores["sha256"] == sha256(student.read_bytes()).hexdigest()
    assert scores["commit"]
    agent = load_agent(student)
    assert agent.card.evaluation["scores"] == scores["scores"]
    assert agent.card.game == "breakout"
    assert agent.card.steps == scores["steps"] >= 300
    assert "\x1b" not in printed, "plain lines when the output is no terminal"
    assert "kfrl eval" in printed


def test_saved_config_runs_the_same_run_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    cwd, _ = finished
    config = only_run(cwd, "breakout/a3c/*") / "config.yaml"
    printed = kfrl(tmp_path, "train", "--config", str(config), "--run-dir", "again[b]", "--eval-episodes", "0")
    first, second = (yaml.safe_load(path.read_text()) for path in (config, tmp_path / "again[b]" / "config.yaml"))
    assert second.pop("run_dir") == "again[b]"
    assert "Writing to again[b]" in printed, "a bracket in a path is no markup"
    assert second.pop("eval_episodes") == 0
    assert second == {key: value for key, value in first.items() if key in second}


@pytest.mark.slow
def test_a_runs_student_teaches_the_next_run_by_its_game(finished: tuple[Path, str]) -> None:
    cwd, _ = finished
    teacher = only_run(cwd, "breakout/a3c/*")
    small = "--steps 3200 --convs 4 8 8 4 4 2 --hidden 8 --fold-observations 160 --fold-at 0.4".split()
    printed = kfrl(cwd, "train", *TINY, *small, "--teachers", "breakout", "--seed", "2", "--policy-kl-coef", "0.05")
    folder = only_run(cwd, "breakout/knowledge-flow/breakout-s2-*")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["teachers"] == str((teacher / "student.safetensors").resolve())
    assert config["methods"]["knowledge-flow"]["policy_kl_coef"] == 0.05
    rows = read_metrics(folder / "metrics.csv")
    p = [row["flow/p_student/fc"] for row in rows if "flow/p_student/fc" in row]
    assert p[0] < 0.6
    assert any(row.get("fold/r2/conv1", 0.0) > 0.0 for row in rows)
    assert any(row.get("losses/policy_kl", 0.0) != 0.0 for row in rows), "a tiny change of the policy may round below 0"
    assert "Links" in printed
    assert "needs no teacher" in kfrl(cwd, "eval", str(folder), "--episodes", "1")


def test_finished_run_is_not_trained_again(finished: tuple[Path, str]) -> None:
    cwd, _ = finished
    folder = only_run(cwd, "breakout/a3c/*")
    before = (folder / "metrics.csv").read_text()
    assert f"Its scores: {folder / 'eval.json'}" in kfrl(cwd, "train", "--resume", str(folder))
    assert (folder / "metrics.csv").read_text() == before


def test_a_run_without_final_games_gets_them_later(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--game Breakout --algo a2c --envs-per-worker 2 --steps 64 --curve-points 0 --eval-episodes 0 --run-dir run"
    assert main(["train", *flags.split()]) == 0
    assert main(["compare", "run"]) == 2
    assert "Set eval_episodes in its config.yaml, then: kfrl train --resume run" in capsys.readouterr().err
    config = Path("run/config.yaml")
    assert main(["train", "--resume", "run"]) == 0
    assert f"set eval_episodes in {config}" in " ".join(capsys.readouterr().out.split())
    config.write_text(config.read_text().replace("eval_episodes: 0", "eval_episodes: 2"))
    assert main(["train", "--resume", "run"]) == 0
    seeds = {stream(1, 999_997), stream(2, 999_997)}
    assert json.loads(Path("run/eval.json").read_text())["seed"] == stream(1, 999_997)
    assert len(seeds) == 2, "runs of different seeds end with different games"
    assert main(["compare", "run"]) == 0
    assert "2 games a run" in capsys.readouterr().out


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = resolve(
        TrainConfig(game="Breakout", algo="a2c", envs_per_worker=2, steps=64, curve_points=0, eval_episodes=1)
    )
    run.folder.write_config(run.config)
    folder = str(run.folder.path)
    assert main(["train", "--resume", folder]) == 0
    assert "stopped before its first checkpoint" in capsys.readouterr().out
    assert json.loads(run.folder.evaluation.read_text())["steps"] >= 64
    assert main(["train", "--resume", folder]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_run_whose_config_was_changed_is_not_resumed_with_another_net(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cwd, _ = finished
    folder = shutil.copytree(only_run(cwd, "breakout/a3c/*"), tmp_path / "changed")
    (folder / "eval.json").unlink()
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("hidden: 256", "hidden: 128"))
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name != "log.txt"]
    before = [path.read_bytes() for path in kept]
    said = " ".join(refusal(capsys, "train", "--resume", str(folder)).split())
    assert "fc.bias: (256,) instead of (128,)" in said
    assert "restore the config and the teachers" in said
    assert [path.read_bytes() for path in kept] == before


def agent_file(path: Path, game: str = "seaquest") -> Path:
    actions = tuple(f"A{index}" for index in range(3))
    net = AtariNet(3)
    save_agent(path, net, Card(game=game, actions=actions, arch=net.arch))
    return path


def test_a_run_goes_on_with_the_teacher_that_it_began_with_or_not_at_all(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = agent_file(tmp_path / "teacher.safetensors")
    before = sha256(teacher.read_bytes()).hexdigest()
    flags = "--game Breakout --algo a2c --envs-per-worker 2 --steps 64 --curve-points 0 --eval-episodes 1 --run-dir run"
    linked = ["--fold-at", "None", "--no-choose-channels"]
    assert main(["train", *flags.split(), "--teachers", str(teacher), *linked]) == 0
    assert "Warning: this student is not independent." in capsys.readouterr().out
    run = Path("run")
    scores = json.loads((run / "eval.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    checkpoint = latest_checkpoint(run / "checkpoint")
    assert load_agent(run / "student.safetensors").card.teacher_sha256 == (before,)
    held = (scores["teacher_sha256"], config["teacher_sha256"], checkpoint.state["teacher_sha256"])
    assert held == ([before],) * 3
    torch.manual_seed(1)
    after = sha256(agent_file(teacher).read_bytes()).hexdigest()
    assert after != before
    (run / "eval.json").unlink()
    said = refusal(capsys, "train", "--resume", "run")
    assert before in said
    assert after in said
    assert main(["eval", "run", "--episodes", "1"]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert "with its teachers' links is left out" in said
    assert before in said
    assert after in said
    # Whoever takes the checksum out of the config meets the one in the checkpoint.
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(before, after))
    assert f"checkpoint {checkpoint.path.name} says {before}" in refusal(capsys, "train", "--resume", "run")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `kfrl` says when it refuses; tyro's own refusals end in SystemExit."""
    try:
        code = main(list(arguments))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    said = capsys.readouterr()
    assert code == 2, said
    assert "Traceback" not in said.err + said.out
    return said.err + said.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--game", "Aline"], ["'Aline'", "'Alien'"]),
        ([], ["--game"]),
        (["--game", "Alien", "--teachers", "seaqest"], ["'seaqest'", "'seaquest'"]),
        (["--game", "Alien", "--method", "knowlege-flow"], ["'knowlege-flow'", "'knowledge-flow'", "fine-tune"]),
        (["--game", "Alien", "--protocol", "papr"], ["'papr'", "'paper'", "machado"]),
        (["--game", "Alien", "--steps", "0"], ["steps", "0"]),
        (["--game", "Alien", "--steps", "-5"], ["steps", "-5"]),
        (["--game", "Alien", "--workers", "0"], ["workers", "0"]),
        (["--game", "Alien", "--envs-per-worker", "-1"], ["envs_per_worker", "-1"]),
        (["--game", "Alien", "--steps", "many"], ["--steps", "many"]),
        (["--game", "Alien", "--wrkers", "2"], ["--wrkers", "--workers"]),
        (["--game", "Alien", "--teachers", "missing.safetensors"], ["missing.safetensors"]),
        (["--game", "Alien", "--method", "fine-tune"], ["exactly one teacher", "0"]),
        (["--game", "Alien", "--method", "a3c", "--teachers", "seaquest"], ["takes no teachers", "1"]),
        (["--game", "Alien", "--convs", "16", "99", "4"], ["99", "84"]),
        (["--config", "missing.yaml"], ["missing.yaml"]),
        (["--resume", "nowhere"], ["nowhere", "config.yaml"]),
        (["--resume", "nowhere", "--steps", "5"], ["--steps"]),
    ],
)
def test_bad_flags_are_refused_in_a_sentence_and_write_nothing(
    empty: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    said = refusal(capsys, "train", *flags)
    assert [word for word in words if word not in said] == [], said
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("game: Alien\nstpes: 5\n", ["stpes", "steps"]),
        ("game: Alien\nflow: {fold: 1}\n", ["knowledge-flow", "Unknown key fold.", "fold_at"]),
        ("game: Alien\nsteps: soon\n", ["steps", "soon"]),
        ("game: [Alien\n", ["YAML"]),
        ("- Alien\n", ["key: value"]),
        (
            "game: Alien\nteachers: seaquest\nflow: {links: [{student: conv9, teacher: seaquest, layer: conv1}]}\n",
            ["conv9", "conv1", "conv2", "fc", "policy", "value"],
        ),
        (
            "game: Alien\nteachers: seaquest\nflow: {links: [{student: conv1, teacher: pong, layer: conv1}]}\n",
            ["'pong'", "seaquest"],
        ),
    ],
)
def test_bad_config_is_refused_and_nothing_else_is_written(
    empty: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    (empty / "run.yaml").write_text(text)
    said = refusal(capsys, "train", "--config", "run.yaml")
    assert [word for word in words if word not in said] == [], said
    assert [path.name for path in empty.iterdir()] == ["run.yaml"]


def test_existing_run_folder_is_left_alone(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty / "old").mkdir()
    said = refusal(capsys, "train", "--game", "Alien", "--run-dir", "old")
    assert "--resume old" in said
    assert list((empty / "old").iterdir()) == []


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("exploded", "w"))


def test_broken_teacher_files_are_refused_and_no_code_runs(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = agent_file(empty / "whole.safetensors").read_bytes()
    (empty / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(Bomb(), empty / "bomb.pt")
    torch.save(AtariNet(3).state_dict(), empty / "foreign.pth")
    (empty / "notes.txt").write_text("not an agent")
    before = sorted(path.name for path in empty.iterdir())
    for name, word in {
        "cut.safetensors": "truncated",
        "bomb.pt": "no code in it ran",
        "foreign.pth": "does not name the game",
        "notes.txt": "not a plain state dict",
    }.items():
        said = refusal(capsys, "train", "--game", "Alien", "--teachers", name)
        assert name in said
        assert word in said
    refusal(capsys, "teachers", "import", "bomb.pt", "--game", "Alien", "--output", "out.safetensors")
    assert sorted(path.name for path in empty.iterdir()) == before


def test_flags_override_the_config(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty / "run.yaml").write_text("game: Alien\nprotocol: nonsense\n")
    assert "nonsense" in refusal(capsys, "train", "--config", "run.yaml")
    assert "'other'" in refusal(capsys, "train", "--config", "run.yaml", "--protocol", "other")


def test_help_needs_no_torch() -> None:
    code = "import sys; from kfrl.cli.main import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules, 'ale_py' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--game" in done.stdout
    assert "--dependence-coef" not in done.stdout, "a method's own settings come with --method NAME --help"
    assert done.stdout.splitlines()[-1] == "False False"
