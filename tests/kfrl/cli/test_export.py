"""`kfrl export` as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.export import exportable
from agents.teachers.formats import Card, save_agent
from envs.atari import action_set
from envs.protocols import get_protocol
from kfrl.cli.main import main
from kfrl.nets.atari.net import AtariNet
from kfrl.supervised.classifiers import load_classifier


def test_a_run_is_exported_with_its_preprocessing_written_down(
    finished_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "<script>")
    assert main(["export", str(run), "--to", "torchscript"]) == 0
    assert "within 0 of the student's" in capsys.readouterr().out
    about = json.loads((run / "exported.pt.json").read_text())
    assert about["actions"] == list(action_set(get_protocol("paper", "Breakout")))
    assert about["input"]["shape"] == ["batch", 4, 84, 84]
    assert about["preprocessing"]["protocol"] == get_protocol("paper", "Breakout").to_dict()
    assert about["gymnasium"]["kwargs"]["noop_max"] == 31
    assert main(["export", str(run), "--to", "torchscript"]) == 2
    assert "exported.pt exists. Give another --output." in capsys.readouterr().err


def test_a_classifier_takes_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--data digits --net mlp-8 --epochs 1 --batch-size 512 --run-dir run".split()
    assert main(["supervised", "train", *flags]) == 0
    assert main(["export", "run", "--to", "torchscript"]) == 0
    teacher = load_classifier(Path("run/student.safetensors"))
    pixels = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    mean, std = teacher.card.mean[0], teacher.card.std[0]
    expected = teacher.net((pixels.float() / 255 - mean) / std)
    torch.testing.assert_close(torch.jit.load("run/exported.pt")(pixels), expected)
    assert json.loads(Path("run/exported.pt.json").read_text())["classes"] == list(teacher.card.classes)


def test_rules_that_gymnasium_does_not_have_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = get_protocol("sb3", "Breakout")
    net = AtariNet(4, ((4, 8, 8),), 8)
    card = Card("breakout", action_set(protocol), net.arch, protocol=protocol.to_dict(), caveat="It leans on others.")
    save_agent(tmp_path / "agent.safetensors", net, card)
    assert exportable(str(tmp_path / "agent.safetensors"), tmp_path).about["gymnasium"] is None
    output = str(tmp_path / "x.safetensors")
    assert main(["export", str(tmp_path / "agent.safetensors"), "--to", "safetensors", "--output", output]) == 0
    said = capsys.readouterr().out
    assert "press FIRE yourself" in said
    assert "It leans on others." in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere", "Unknown teacher 'nowhere'"),
        ("zoo:pong --output x.pt", "A file of --to onnx ends in .onnx, got 'x.pt'."),
        (".", "is a folder without a student.safetensors"),
    ],
)
def test_bad_input(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
