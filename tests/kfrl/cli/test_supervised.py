import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from kfrl.cli.main import main
from kfrl.supervised.evaluate import ImageEvaluation
from kfrl.supervised.trainer import Trainer

SMALL = ["--data", "digits", "--net", "mlp-16", "--epochs", "2", "--batch-size", "64"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_student_of_an_earlier_run_from_end_to_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supervised", "train", *SMALL, "--run-dir", "runs/digits/baseline/one"]) == 0
    flags = [*SMALL, "--data", "digits-half", "--teachers", "digits", "--run-dir", "runs/half", "--seed", "2"]
    assert main(["supervised", "train", *flags]) == 0
    said = capsys.readouterr().out
    assert "digits-half · knowledge-flow · teacher digits" in said
    assert "teacher digits: mlp-16, 10 classes" in said
    assert "Test error of the student, alone:" in said
    assert "not independent" not in said
    folder = here / "runs" / "half"
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml",
        "student.safetensors",
        "checkpoint",
        "metrics.csv",
        "eval.json",
        "curves.png",
        "log.txt",
    }
    result = json.loads((folder / "eval.json").read_text())
    assert result["test"]["images"] == 168
    weights = result["layer_weights"]
    assert weights.pop("fold/r2/fc1") > 0.99
    assert weights == {"flow/p_student/fc1": 1.0, "flow/p_teacher/digits/fc1": 0.0}

    assert main(["supervised", "eval", "runs/half", "--json", "again.json"]) == 0
    again = json.loads((here / "again.json").read_text())
    assert again["correct"] == result["test"]["correct"]
    assert again["per_class_percent"] == result["test"]["per_class_percent"]
    assert again["teacher_sha256"] == result["teacher_sha256"] != []
    assert main(["plot", "runs/half", "--output", "p.png"]) == 0
    assert main(["supervised", "train", "--resume", "runs/half"]) == 0
    assert "is finished" in capsys.readouterr().out
    # What a run wrote runs it again.
    assert main(["supervised", "train", "--config", "runs/half/config.yaml", "--run-dir", "runs/same"]) == 0
    assert json.loads((here / "runs" / "same" / "eval.json").read_text())["test"] == result["test"]


def test_a_student_that_needs_its_teachers_comes_with_a_warning_and_a_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, firsts = Trainer.evaluate_on_validation, dict[Path, dict[str, ImageEvaluation]]()

    def no_better_than_the_first(trainer: Trainer) -> dict[str, ImageEvaluation]:
        return firsts.setdefault(trainer.run.folder.path, evaluate(trainer))

    monkeypatch.setattr(Trainer, "evaluate_on_validation", no_better_than_the_first)

    def said(name: str, *flags: str) -> str:
        assert main(["supervised", "train", *SMALL, *flags, "--run-dir", name]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "Warning" not in said("teacher")
    linked = said("linked", "--teachers", "teacher", "--independence-at", "None")
    assert "Warning: this student is not independent." in linked
    assert "--independence-at 0.4 gives one that is independent" in linked
    # Of two epochs the first is kept, and the student is independent after it.
    early = said("early", "--teachers", "teacher", "--independence-at", "0.9")
    assert "Warning: this student is not independent." in early
    assert "--keep last gives one that is independent" in early
    assert "Warning" not in said("late", "--teachers", "teacher", "--independence-at", "0.9", "--keep", "last")
    never = said("never", "--teachers", "teacher", "--independence-at", "1", "--keep", "last")
    assert "--independence-at 0.4 gives one that is independent" in never


def test_a_run_finds_its_images_from_every_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in "ab":
        for number in range(10):
            path = here / "pets" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), np.full((8, 8), number, dtype=np.uint8))
    flags = ["--net", "mlp-16", "--epochs", "2", "--batch-size", "4", "--data-dir", "images"]
    for name in ("pets", "pets-no-b"):
        assert main(["supervised", "train", "--data", name, *flags, "--run-dir", name + "-run"]) == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    for name in ("pets", "pets-no-b"):
        config = (here / f"{name}-run" / "config.yaml").read_text()
        assert f"data: {here / name}\n" in config and f"data_dir: {here / 'images'}\n" in config
        (here / f"{name}-run" / "eval.json").unlink()
        assert main(["supervised", "train", "--resume", f"../{name}-run"]) == 0
        assert main(["supervised", "eval", f"../{name}-run"]) == 0


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, count = Trainer.update, 0

    def pressed(trainer: Trainer, batch: object) -> None:
        nonlocal count
        plain(trainer, batch)
        count += 1
        if count == 25:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "update", pressed)
    assert main(["supervised", "train", *SMALL, "--run-dir", "run"]) == 130
    said = capsys.readouterr().out
    assert "Stopped in epoch 2" in said
    line = next(line for line in said.splitlines() if line.startswith("Resume with: kfrl "))
    assert main(line.removeprefix("Resume with: kfrl ").split()) == 0
    said = capsys.readouterr().out
    assert "Going on from epoch 2" in said and "Test error" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("supervised trainn", "Unknown command 'trainn'. Did you mean 'train'?"),
        ("supervised train", "Which images? Give --data NAME"),
        ("supervised train --data cifar10", "Did you mean 'cifar-10'?"),
        ("supervised train --data svhn --net resnett-20", "Did you mean 'resnet-20'?"),
        ("supervised train --data svhn --teachers mnist", "No run of yours has learned mnist"),
        ("supervised train --data digits --method fitnet --teachers x", "Did you mean 'fitnets'?"),
        ("supervised train --data digits --net mlp-0", "at least one unit, got [0].\n"),
        ("supervised train --data digits --teachers mnist", "No run of yours has learned mnist"),
        ("supervised train --resume nowhere", "nowhere is not the folder of a run"),
        ("supervised train --resume x --lr 3", "takes no other flag, got --lr 3"),
        ("supervised train --data digits --lr -3", "lr: Input should be greater than 0, got -3.0"),
        ("supervised eval nothing", "Unknown teacher 'nothing'"),
        ("supervised compare", "Which runs?"),
        ("supervised compare nowhere", "There is no folder nowhere"),
    ],
)
def test_bad_input_is_a_sentence(words: str, message: str, capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("kfrl: ") and "Traceback" not in said
    assert not list(here.iterdir()), "nothing was written"


def test_a_graph_in_a_file_is_learned_and_a_wrong_gate_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, here: Path
) -> None:
    path = tmp_path / "graph.yaml"
    graph = """
method: collaborative
collaborative:
  nodes: [{name: student}, {name: peer}]
  edges:
  - {source: labels, target: student}
  - {source: labels, target: peer}
  - {source: peer, target: student, gate: GATE}
"""
    path.write_text(graph.replace("GATE", "linea"))
    assert main(["supervised", "train", *SMALL, "--config", str(path), "--run-dir", "run"]) == 2
    assert "gate of the edge peer -> student 'linea'. Did you mean 'linear'?" in capsys.readouterr().err
    assert not (here / "run").exists()
    path.write_text(graph.replace("GATE", "linear"))
    assert main(["supervised", "train", *SMALL, "--config", str(path), "--run-dir", "run"]) == 0
    assert "peer: " in capsys.readouterr().out


def test_a_classifier_of_other_classes_cannot_be_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supervised", "train", *SMALL, "--run-dir", "run"]) == 0
    assert main(["supervised", "eval", "run", "--data", "digits-half"]) == 2
    assert "has 10 classes (0, 1, 2, 3, ...), and digits-half has 5 others" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from kfrl.cli.main import main\n"
        "main(['supervised', '--help'])\n"
        "for command in ('train', 'eval', 'compare', 'data'):\n"
        "    try: main(['supervised', command, '--help'])\n"
        "    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'pooch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "--teachers" in finished.stdout and "--output" in finished.stdout


def test_the_data_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supervised", "data"]) == 0
    said = capsys.readouterr().out
    assert "emnist-letters" in said and "124,800" in said and "knowledge-flow" in said
