"""Classifiers' answers in a file: students that learn from them, and whose answers are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kfrl.errors import UserError
from kfrl.nets.images.registry import make_net
from kfrl.runs.provenance import sha256
from kfrl.supervised import resume, train
from kfrl.supervised.answers import collect, read_answers
from kfrl.supervised.classifiers import Card, load_classifier, save_classifier
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.sets import Data, load_data
from kfrl.supervised.run import reopen, resolve

CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", None, None, 1e9)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Takes images of another normalisation than the students'."""
    net = make_net("mlp-6", (1, 8, 8), 10)
    path = tmp_path / "teacher.safetensors"
    arch = dict(net.arch)
    save_classifier(path, net, Card("digits", CLASSES, arch, (1, 8, 8), (0.25,), (0.5,), net="mlp-6"))
    return path


@pytest.fixture
def answers(tmp_path: Path, teacher: Path, digits: Data) -> Path:
    path = tmp_path / "digits.answers"
    assert list(collect(path, digits, [load_classifier(teacher)], 256))[-1] == len(digits.train)
    return path


SETTINGS: dict[str, Any] = {
    **{"data": "digits", "net": "mlp-4", "epochs": 1, "batch_size": 64, "augment": "none", "train_images": 400},
}


def test_the_file_has_the_logits_of_every_training_image(answers: Path, teacher: Path, digits: Data) -> None:
    (asked,) = read_answers(answers, digits)
    pixels = digits.train.pixels.float() / 255
    assert asked.answers is not None
    torch.testing.assert_close(asked.answers, load_classifier(teacher).net((pixels - 0.25) / 0.5), atol=1e-4, rtol=1e-4)
    assert asked.sha256 == load_classifier(teacher).sha256
    with pytest.raises(UserError, match="stored answers and no net"):
        asked.net(pixels)


@pytest.mark.parametrize("method", ["kd", "mimic"])
def test_a_student_learns_the_same_without_its_teacher(
    tmp_path: Path, answers: Path, teacher: Path, method: str
) -> None:
    settings = {**SETTINGS, "method": method}
    live = train({**settings, "teachers": str(teacher), "run_dir": tmp_path / "live"}).student
    teacher.unlink()
    result = train({**settings, "answers": answers, "run_dir": tmp_path / "stored"})
    for one, other in zip(live.parameters(), result.student.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    card = load_classifier(tmp_path / "stored" / "student.safetensors").card
    assert (card.teachers, len(card.teacher_sha256)) == (("digits",), 1)


def test_answers_of_another_teacher_are_refused(tmp_path: Path, answers: Path, teacher: Path) -> None:
    config = SupervisedConfig(**SETTINGS, method="kd", answers=answers)
    assert resolve(replace(config, teachers=str(teacher))).config.teacher_sha256 != ()
    held = load_classifier(teacher)
    with torch.no_grad():
        next(held.net.parameters()).add_(1.0)
    other = tmp_path / "other.safetensors"
    save_classifier(other, held.net, held.card)
    with pytest.raises(UserError, match=r"no answers of .*other.*, only of digits .*Collect them: kfrl supervised"):
        resolve(replace(config, teachers=str(other)))
    with pytest.raises(UserError, match="the config says abc"):
        resolve(replace(config, teacher_sha256=("abc",)))


def test_a_run_goes_on_with_the_answers_that_it_began_with(
    tmp_path: Path, answers: Path, teacher: Path, digits: Data
) -> None:
    """The same teacher's answers to the same images may be stored anew, and differ, e.g. by their rounding."""
    train({**SETTINGS, "method": "kd", "answers": answers, "run_dir": tmp_path / "run"})
    before = sha256(answers)
    assert reopen(tmp_path / "run").config.answers_sha256 == (before,)
    asked = load_classifier(teacher)
    with torch.no_grad():
        next(asked.net.parameters()).add_(1.0)
    list(collect(answers, digits, [asked], 256))
    after = sha256(answers)
    with pytest.raises(UserError, match=f"Answers .*digits.answers: its SHA-256 is {after}, .* config says {before}"):
        resume(tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(before, after))
    with pytest.raises(UserError, match=f"its SHA-256 is {after}, and the checkpoint .* says {before}"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"augment": "shift"}, "answers are for images without augmentation.* Give --augment none"),
        ({"method": "knowledge-flow"}, "knowledge-flow does not learn from --answers alone. --method kd and mimic do"),
        ({"data": "digits-half"}, "has answers for the .* training images of digits; the .* of digits-half differ"),
        ({"image_size": 10}, "or have another --image-size"),
        ({"answers": Path("teacher.safetensors")}, "`kfrl supervised collect` writes files of answers"),
        ({"answers": Path("nowhere")}, "There is no file nowhere"),
    ],
)
def test_answers_that_do_not_fit_are_refused(
    tmp_path: Path, answers: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        resolve(SupervisedConfig(**{**SETTINGS, "method": "kd", "answers": answers, **settings}))
