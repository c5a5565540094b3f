"""The commands of README and tutorial, run in their order as a new user would, made small by flags at their ends."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kfrl.cli.main import main

ROOT = Path(__file__).parents[1]
SMALLER = {
    "train": (
        "--steps 3200 --workers 2 --envs-per-worker 8 --curve-points 0 --eval-episodes 1 --convs 4 8 8 4 4 2 --hidden 8"
    ).split(),
    "eval": "--episodes 1".split(),
    "bench": "--seconds 0.05".split(),
    "teachers check": "--episodes 1".split(),
}


def made_small(words: list[str]) -> list[str]:
    """A command with flags at its end that make it small: nets of a few units, whose fold needs little play."""
    if "--resume" in words:
        return words
    smaller = [*words, *SMALLER.get(words[0], SMALLER.get(" ".join(words[:2]), []))]
    if words[0] == "train" and "--teachers" in words:
        smaller += "--curve-points 1 --curve-episodes 1".split()
        # The paper's student is not folded.
        smaller += [] if "configs/atari/paper.yaml" in words else "--fold-observations 160".split()
    return smaller


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: str = "README.md") -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for block in blocks("bash", page) for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "kfrl"]


@pytest.mark.slow
def test_every_command_of_the_readme_works(
    tmp_path: Path, short_games: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.benchmark.FAST_ENVS", 1)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    # What `make train`, which the README names first, has left.
    (tmp_path / "runs" / "seaquest" / "knowledge-flow" / "seaquest-s1").mkdir(parents=True)
    ran = commands()
    assert {words[0] for words in ran} == {
        "doctor",
        "train",
        "eval",
        "export",
        "report",
        "compare",
        "plot",
        "teachers",
        "games",
        "bench",
        "supervised",
    }
    for words in ran:
        assert main(made_small(words)) == 0, (words, capsys.readouterr())
    assert (tmp_path / "runs" / "flow" / "curves.png").exists()
    assert (tmp_path / "alien.json").exists()
    assert (tmp_path / "comparison" / "curves-alien.png").exists()
    assert (tmp_path / "alien.mp4").exists()


@pytest.mark.slow
def test_every_command_of_the_tutorial_works(
    tmp_path: Path, short_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = commands("docs/tutorial.md")
    assert {words[0] for words in ran} == {"doctor", "teachers", "train", "eval", "compare", "report", "export"}
    for words in ran:
        assert main(made_small(words)) == 0, words
    assert "data:video/mp4" in Path("report.html").read_text()
    assert Path("runs/first/exported.onnx").exists()


def test_the_readmes_python_does_what_its_comments_say(mlp: Callable[..., nn.Sequential]) -> None:
    (code,) = blocks("python")
    batch, student = torch.randn(5, 3), mlp(3, 4, 2)
    alone = student(batch)
    names: dict[str, Any] = {
        "student": student,
        "teacher": mlp(3, 6, 2),
        "example_batch": torch.randn(2, 3),
        "batch": batch,
        "batches": list(torch.randn(100, 3).split(10)),
    }
    exec(code, names)
    assert not torch.equal(names["output"], alone)
    torch.testing.assert_close(names["student_alone"](batch), names["output"], atol=1e-3, rtol=1e-3)
