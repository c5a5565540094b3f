import hashlib
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.optim.groups import ParameterGroup
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.supervised.classifiers import load_classifier
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.sets import check_memory
from kfrl.supervised.launch import Session
from kfrl.supervised.methods.base import Method, Stage
from kfrl.supervised.run import Run, reopen
from kfrl.supervised.trainer import Trainer
from kfrl.training import proof
from kfrl.training.session import Silent
from kfrl.training.trainer import Outcome

SETTINGS = SupervisedConfig(data="digits", net="mlp-16-dropout", epochs=3, batch_size=64, augment="crop-flip", pad=1)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    def build(name: str = "run", **settings: object) -> Run:
        return Session.start(replace(SETTINGS, run_dir=tmp_path / name, **settings)).run

    return build


class InterruptAt(Silent):
    """Presses Ctrl-C after so many updates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, update: int) -> None:
        self.count = 0
        plain = Trainer.update

        def counted(trainer: Trainer, batch: object) -> None:
            plain(trainer, batch)
            self.count += 1
            if self.count == update:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Trainer, "update", counted)


def train(run: Run, resume: bool = False) -> tuple[Trainer, Outcome]:
    trainer = Trainer(run, Silent(), latest_checkpoint(run.folder.checkpoints) if resume else None)
    return trainer, trainer.train()


def learned(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder.student)


def test_a_baseline_learns_and_its_student_is_the_best_epoch(run: Callable[..., Run]) -> None:
    made = run(net="mlp-64", epochs=8, augment="none", pad=4)
    trainer, outcome = train(made)
    rows = read_metrics(made.folder.metrics)
    assert outcome.step == 8 == len(rows)
    kept = load_classifier(made.folder.student).card
    best = max(row["val/accuracy"] for row in rows)
    assert kept.validation_accuracy == best > 0.9
    assert rows[kept.epochs - 1]["val/accuracy"] == best
    result = trainer.finish()
    assert result["test"]["images"] == 359
    assert result["test"]["accuracy_percent"] > 90
    assert result["deployed_parameters"] == 64 * 64 + 64 + 64 * 10 + 10


@pytest.mark.parametrize("term", ["0.0 * logits.sum()", "logits.detach().sum()"])
def test_a_term_without_a_gradient_ends_the_run_and_is_named(
    term: str, run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "PROOF_UPDATES", 3)
    _, outcome = train(run(method=own_method(tmp_path, term)))
    assert outcome.failure is not None
    assert "losses/mine had no gradient in its first 3 updates: it has no effect" in outcome.failure
    assert not outcome.resumable
    assert outcome.step == 0


def test_looking_for_a_gradient_changes_no_weight(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, unasked = (
        run(name, method=own_method(tmp_path, "progress.in_run * logits.square().mean()")) for name in ("1", "2")
    )
    assert train(looked)[1].failure is None
    monkeypatch.setattr(proof.Proof, "complaint", lambda *_: None)
    train(unasked)
    for name, tensor in learned(looked).items():
        assert torch.equal(tensor, learned(unasked)[name])


def own_method(folder: Path, term: str) -> str:
    """A method in a file, whose loss has one more term: an expression of `logits` and `progress`."""
    (folder / "mine.py").write_text(
        "import torch.nn.functional as F\n"
        "from kfrl.supervised.methods.base import Method\n"
        "class Mine(Method):\n"
        "    def losses(self, net, batch, progress):\n"
        "        logits = net(batch.images)\n"
        f"        return {{'task': F.cross_entropy(logits, batch.labels), 'mine': {term}}}\n"
        "METHOD = Mine\n"
    )
    return str(folder / "mine.py")


def test_the_last_epoch_is_kept_if_asked(run: Callable[..., Run]) -> None:
    made = run(keep="last", validation=0.0, schedule="constant", lr=0.01)
    trainer, _ = train(made)
    assert all(torch.equal(tensor, learned(made)[name]) for name, tensor in trainer.net.state_dict().items())
    assert load_classifier(made.folder.student).card.epochs == 3


@pytest.mark.parametrize("at", [7, 20], ids=["within an epoch", "at the end of one"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"net": "conv-8-8"}, {"net": "conv-8-8", "method": "knowledge-flow"}],
    ids=["mlp", "conv", "flow on conv"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, at: int, settings: dict[str, object]
) -> None:
    if "method" in settings:
        teacher = run("teacher", net="conv-6-6", epochs=1)
        train(teacher)
        settings = {
            **settings,
            "teachers": str(teacher.folder.path),
            "methods": {"knowledge-flow": {"independence_at": 1.0}},
        }
    whole = run("whole", **settings)
    assert len(Trainer(run("other"), Silent()).images) == 20
    train(whole)
    broken = run("broken", **settings)
    with monkeypatch.context() as patch:
        display = InterruptAt(patch, at)
        outcome = Trainer(broken, display).train()
    assert outcome.stopped_by == signal.SIGINT
    assert outcome.step < 3
    torch.manual_seed(99)
    _, resumed = train(reopen(broken.folder.path), resume=True)
    assert resumed.step == 3
    rows = [
        [{name: value for name, value in row.items() if not name.startswith("time/")} for row in read_metrics(path)]
        for path in (whole.folder.metrics, broken.folder.metrics)
    ]
    assert rows[0] == rows[1]
    ours, theirs = learned(whole), learned(broken)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    states = [latest_checkpoint(made.folder.checkpoints).tensors for made in (whole, broken)]
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class TwoStages(Method):
    """The first layer, then the head."""

    def stages(self, net: nn.Module) -> tuple[Stage, ...]:
        layers = [net.get_submodule(name) for name in ("fc1", "head")]
        return tuple(
            Stage(str(index), 1, (ParameterGroup(tuple(layer.parameters()), lr_scale=1.0 + index),))
            for index, layer in enumerate(layers)
        )


def test_few_training_images_are_the_same_for_every_seed_and_of_every_class(run: Callable[..., Run]) -> None:
    first, second = run("first", train_images=200, seed=1), run("second", train_images=200, seed=2)
    assert abs(len(first.train) + len(first.validation) - 200) <= 10, "up to rounding in each class"
    assert torch.equal(first.train.pixels, second.train.pixels)
    shares = first.train.labels.bincount() / first.data.train.labels.bincount()
    assert bool((shares - 0.125).abs().max() < 0.01), "200 of 1,438 images, less a tenth for validation"
    assert len(first.data.test) == len(run("third").data.test)


def test_a_run_goes_on_with_the_teacher_that_it_began_with(run: Callable[..., Run]) -> None:
    teachers = [run(name, epochs=1, seed=seed) for seed, name in enumerate(("one", "other"))]
    for teacher in teachers:
        train(teacher)
    path = teachers[0].folder.student
    made = run("student", teachers=str(path), method="kd", epochs=1)
    trainer, _ = train(made)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert trainer.finish()["teacher_sha256"] == [before]
    assert load_classifier(made.folder.student).card.teacher_sha256 == (before,) == made.config.teacher_sha256
    reopen(made.folder.path)
    path.write_bytes(teachers[1].folder.student.read_bytes())
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"its SHA-256 is {after}, and the config says {before}"):
        reopen(made.folder.path)
    with pytest.raises(UserError, match=f"the config says {before}"):
        run("again", teachers="", teacher_sha256=(before,))
    text = made.folder.config.read_text()
    made.folder.config.write_text(text.replace(f"- {before}\n", f"- {after}\n"))
    with pytest.raises(UserError, match=f"its SHA-256 is {after}, and the checkpoint .* says {before}"):
        train(reopen(made.folder.path), resume=True)


def test_a_folder_that_has_validation_images_is_chosen_by_them(run: Callable[..., Run], tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        for label in "ab":
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                path = tmp_path / "images" / split / label / f"{number}.png"
                assert cv2.imwrite(str(path), np.full((8, 8), number, dtype=np.uint8))
    data = str(tmp_path / "images")
    made, few, without = run(data=data), run("few", data=data, train_images=4), run("none", data=data, validation=0.0)
    sizes = [[len(part) for part in (one.train, one.validation, one.data.test)] for one in (made, few, without)]
    assert sizes == [[12, 6, 4], [4, 6, 4], [12, 0, 4]]


def test_images_of_a_named_set_are_resized(run: Callable[..., Run]) -> None:
    """So a net that is made for larger images can learn them: the teachers of the paper's Table 6."""
    made = run(image_size=96, net="stl-conv-2")
    assert (made.task.shape, made.data.test.shape) == ((1, 96, 96), (1, 96, 96))


def test_a_stage_trains_its_own_parameters_alone_and_begins_its_schedule_anew(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "method", lambda made: TwoStages(made.config))
    made = run(validation=0.0, epochs=9)
    trainer = Trainer(made, Silent())
    start = {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}
    rates = []
    plain = Trainer.update

    def watched(self: Trainer, batch: object) -> None:
        plain(self, batch)
        rates.append(self._optimiser.param_groups[0]["lr"])
        if self.updates == 22:
            middle = self.net.state_dict()
            assert torch.equal(middle["head.weight"], start["head.weight"])
            assert not torch.equal(middle["fc1.weight"], start["fc1.weight"])
            start["fc1.weight"] = middle["fc1.weight"].clone()

    monkeypatch.setattr(Trainer, "update", watched)
    trainer.train()
    assert trainer.epochs == 2
    assert torch.equal(trainer.net.state_dict()["fc1.weight"], start["fc1.weight"])
    assert not torch.equal(trainer.net.state_dict()["head.weight"], start["head.weight"])
    assert (rates[0], rates[22]) == (0.05, 0.1)
    assert rates[21] < 0.001


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_checkpoint(run: Callable[..., Run]) -> None:
    made = run(lr=1e20, augment="none", pad=4)
    _, outcome = train(made)
    assert outcome.failure is not None and "A lower --lr" in outcome.failure
    with pytest.raises(UserError):
        latest_checkpoint(made.folder.checkpoints)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "mnits"}, "Unknown data set 'mnits'. Did you mean 'mnist'?"),
        ({"method": "baselin"}, "Did you mean 'baseline'?"),
        ({"net": "mpl-800"}, "Did you mean 'mlp-800-800'?"),
        ({"method": "kd"}, "needs at least one teacher"),
        ({"method": "baseline", "teachers": "digits"}, "takes no teachers"),
        ({"data": "digits-no-ten"}, "Unknown class of scikit-learn's digits 'ten'"),
        ({"method": "kd", "teachers": "nowhere/student.safetensors"}, "There is no file"),
        ({"device": "gpu"}, "Expected cpu, cuda"),
        ({"train_images": 5}, "there are 1,438 training images in 10 classes. Give 10 to 1,438."),
    ],
)
def test_bad_input_is_named(run: Callable[..., Run], settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as raised:
        run(**settings)
    assert message in str(raised.value)


FLOW = {"method": "knowledge-flow", "teachers": "digits"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": (0.3,)}, "--milestones are for --schedule steps, got --schedule cosine"),
        ({"optimizer": "adam", "momentum": 0.5}, "--momentum 0.5 is for --optimizer sgd, got --optimizer adam"),
        (
            {"augment": "none", "pad": 8},
            "--pad 8 is the padding of --augment shift and crop-flip, and this run has no augmentation",
        ),
        ({"keep": "best", "validation": 0.0}, "--validation 0 keeps none. Give --keep last"),
        ({"memory_gb": 2.0}, "--memory-gb 2 is for a folder of images, whose files stay where they are, and digits"),
        (
            FLOW | {"methods": {"knowledge-flow": {"temperature": 2.0, "soft_weight": 0.5}}},
            "--temperature, --soft-weight needs --soft-targets",
        ),
        (
            FLOW | {"methods": {"knowledge-flow": {"handover_start": 0.1, "independence_at": None}}},
            "--handover-start 0.1 has no effect in this run: p of the student is not forced",
        ),
        (
            FLOW | {"methods": {"knowledge-flow": {"transform_rank": 8}}},
            "--transform-rank 8 has no effect in this run: it is of --transform low-rank",
        ),
    ],
)
def test_a_setting_without_an_effect_is_refused(
    run: Callable[..., Run], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        run(**settings)
    assert message in str(raised.value)


def test_a_limit_of_memory_is_for_folders_also_those_of_an_old_task(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("images", "images-half", "images-other-half-no-cat"):
        check_memory(2.0, "digits", str(tmp_path / name))
    check_memory(8.0, "digits", "")
    (tmp_path / "images.zip").touch()
    with pytest.raises(UserError, match="Leave it out"):
        check_memory(2.0, str(tmp_path / "images.zip"), "")


def test_a_run_of_an_earlier_version_goes_on_with_settings_that_have_no_effect(run: Callable[..., Run]) -> None:
    made = run(validation=0.0)
    assert (made.config.keep, run("other").config.keep) == ("last", "best")
    text = made.folder.config.read_text()
    earlier = {"keep: last": "keep: best", "momentum: 0.9": "momentum: 0.5", "optimizer: sgd": "optimizer: adam"}
    for now, before in earlier.items():
        assert now in text
        text = text.replace(now, before)
    made.folder.config.write_text(text)
    assert (reopen(made.folder.path).config.keep, reopen(made.folder.path).config.momentum) == ("last", 0.5)


def test_a_linked_students_batch_statistics_are_those_of_its_own_passes(run: Callable[..., Run]) -> None:
    teacher = run("teacher", net="resnet-8", epochs=1, augment="none", pad=4)
    train(teacher)
    flow = {"independence_at": None, "link_heads": "never"}
    settings = {
        "net": "resnet-8",
        "epochs": 2,
        "teachers": str(teacher.folder.path),
        "augment": "none",
        "pad": 4,
        "methods": {"knowledge-flow": flow},
    }
    linked = run("linked", method="knowledge-flow", **settings)
    trainer, _ = train(linked)
    saved = load_classifier(linked.folder.student).net
    block = saved.stage1[0]
    stem = saved.stem.train()
    said = [block.conv1(torch.relu(stem(batch.images))).mean((0, 2, 3)) for batch in trainer.images.ordered()]
    wanted = torch.stack(said).mean(0)
    torch.testing.assert_close(block.bn1.running_mean, wanted, atol=1e-4, rtol=1e-3)
    mixed = trainer.net.student.stage1[0].bn1.running_mean
    assert not torch.allclose(mixed, wanted, atol=1e-2, rtol=1e-1)
    # Nothing of it reaches the net that trains: another pass over the same state gives the same student.
    before = {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}
    trainer.evaluate_on_validation()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.net.state_dict().items())
