import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kfrl.errors import UserError
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.supervised.classifiers import load_classifier
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.sets import load_data
from kfrl.supervised.evaluate import ImageEvaluation, score_classifier
from kfrl.supervised.launch import Session
from kfrl.supervised.methods.base import Progress
from kfrl.supervised.methods.lwf import LearningWithoutForgetting
from kfrl.supervised.run import Run, reopen
from kfrl.supervised.trainer import Trainer
from kfrl.training.session import Silent


def method(epochs: int = 4, **own: object) -> LearningWithoutForgetting:
    return LearningWithoutForgetting(SupervisedConfig(epochs=epochs, methods={"lwf": {"old_data": "none", **own}}))


def test_the_loss_by_hand(task, taught, batch, monkeypatch: pytest.MonkeyPatch) -> None:
    made = method(old_weight=3.0)
    net = made.build(task("mlp-6"), [taught("mlp-6", classes=("a", "b"))])
    # y = (4/5, 1/5), yhat = (1/2, 1/2): with T = 2, y' = (2/3, 1/3) and yhat' = (1/2, 1/2).
    monkeypatch.setattr("kfrl.supervised.methods.lwf.teacher_logits", lambda *_: torch.tensor([[math.log(4), 0.0]] * 2))
    logits = torch.zeros(2, 5, requires_grad=True)
    monkeypatch.setattr(type(net), "forward", lambda *_: logits)
    terms = made.losses(net, batch, Progress(1, 0.0, 0.5))
    assert float(terms["task"].detach()) == pytest.approx(math.log(3))
    assert float(terms["old"].detach()) == pytest.approx(3 * math.log(2))
    # The gradient is (yhat' - y') / T, without T^2, averaged over the batch.
    (gradient,) = torch.autograd.grad(terms["old"], logits)
    assert torch.allclose(gradient[0], 3 * torch.tensor([-1 / 6, 1 / 6, 0, 0, 0]) / 2 / 2)


def test_before_training_the_old_head_says_what_the_teacher_says(task, taught, batch) -> None:
    teacher = taught("resnet-8", classes=("a", "b", "c", "d"))
    made = method()
    net = made.build(task("resnet-8"), [teacher]).eval()
    torch.testing.assert_close(net(batch.images)[:, :4], teacher.net(batch.images))
    assert torch.equal(made.export(net)(batch.images), net(batch.images)[:, 4:])
    old, card = made.further(net)["old"]
    torch.testing.assert_close(old(batch.images), teacher.net(batch.images))
    assert card.classes == ("a", "b", "c", "d")


def test_in_the_warm_up_not_a_bit_of_the_rest_moves_batch_statistics_neither(task, taught, batch) -> None:
    made = method(warm_up=0.5)
    net = made.build(task("resnet-8"), [taught("resnet-8", classes=("a", "b"))])
    first, second = made.stages(net)
    assert (first.epochs, second.epochs) == (2, 2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    made.train_mode(net, 0)
    optimiser = torch.optim.SGD(first.groups[0].parameters, lr=1.0, weight_decay=0.1, momentum=0.9)
    terms = made.losses(net, batch, Progress(0, 0.0, 0.0))
    assert set(terms) == {"task"}
    terms["task"].backward()
    optimiser.step()
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.new.weight", "head.new.bias"}
    assert {id(p) for p in second.groups[0].parameters} == {id(p) for p in net.parameters()}


@pytest.mark.parametrize(
    ("variant", "terms", "trained"),
    [
        ("lwf", {"task", "old"}, {"fc1", "head.old", "head.new"}),
        ("fine-tuning", {"task"}, {"fc1", "head.new"}),
        ("feature-extraction", {"task"}, {"head.new"}),
    ],
)
def test_what_each_variant_trains(task, taught, batch, variant: str, terms: set[str], trained: set[str]) -> None:
    made = method(variant=variant)
    net = made.build(task("mlp-6"), [taught("mlp-6", classes=("a", "b"))])
    stages = made.stages(net)
    last = {id(p) for p in stages[-1].groups[0].parameters}
    assert {name.rpartition(".")[0] for name, p in net.named_parameters() if id(p) in last} == trained
    assert set(made.losses(net, batch, Progress(len(stages) - 1, 0.0, 0.9))) == terms


def test_old_images_are_needed_where_they_are_learned_or_cannot_be_guessed(task, taught) -> None:
    teacher = taught("mlp-6", classes=("a", "b"))
    with pytest.raises(UserError, match="joint-training trains on the old task's images"):
        method(variant="joint-training").build(task("mlp-6"), [teacher])
    with pytest.raises(UserError, match=r"Where are the images of 'pets'.*--old-data FOLDER"):
        LearningWithoutForgetting(SupervisedConfig()).build(task("mlp-6"), [teacher])
    with pytest.raises(UserError, match=r"has 2 classes \(a, b\), and digits has 10 others"):
        method(old_data="digits").build(task("mlp-6"), [teacher])


# --- runs: digits 0 to 4 first, then 5 to 9 -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "run"
    Session.start(
        SupervisedConfig(data="digits-half", net="mlp-16", epochs=10, batch_size=32, run_dir=folder)
    ).complete(Silent())
    return folder


@pytest.fixture
def run(tmp_path: Path, old: Path) -> Callable[..., Run]:
    def build(name: str, epochs: int = 8, **own: object) -> Run:
        settings = {"data": "digits-other-half", "teachers": str(old), "method": "lwf", "epochs": epochs, "lr": 0.1}
        return Session.start({**settings, "batch_size": 32, "keep": "last", "run_dir": tmp_path / name, "own": own}).run

    return build


def finished(run: Run) -> dict[str, object]:
    trainer = Trainer(run, Silent())
    trainer.train()
    return trainer.finish()


def test_it_forgets_less_than_a_third_of_what_fine_tuning_forgets(run: Callable[..., Run], old: Path) -> None:
    before = load_classifier(old / "student.safetensors").card.evaluation["accuracy_percent"]
    results = {name: finished(run(name, variant=name)) for name in ("lwf", "fine-tuning", "feature-extraction")}
    kept = {name: result["others"]["old"]["accuracy_percent"] for name, result in results.items()}
    assert kept["feature-extraction"] == before
    assert before - kept["lwf"] < (before - kept["fine-tuning"]) / 3
    assert results["lwf"]["test"]["accuracy_percent"] > 85


def test_the_old_classifier_is_saved_as_it_was_scored_and_both_are_scored_every_epoch(
    run: Callable[..., Run],
) -> None:
    made = run("once", epochs=2)
    result = finished(made)
    saved = load_classifier(made.folder.path / "old.safetensors")
    assert saved.card.classes == tuple("01234")
    again = score_classifier(saved, load_data("digits-half"), 64)
    assert again.accuracy * 100 == result["others"]["old"]["accuracy_percent"]
    assert all("val/accuracy_old" in row for row in read_metrics(made.folder.metrics))
    assert made.task.normalisation.mean == saved.card.mean


def test_the_old_classifiers_card_says_the_epoch_that_was_kept(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run("early", epochs=4)
    made = replace(made, config=replace(made.config, keep="best"))
    plain = Trainer.evaluate_on_validation

    def falling(trainer: Trainer) -> dict[str, ImageEvaluation]:
        scores = plain(trainer)
        return scores if trainer._epoch < 3 else scores | {"": replace(scores[""], correct=0)}

    monkeypatch.setattr(Trainer, "evaluate_on_validation", falling)
    assert finished(made)["kept_epoch"] == 3
    cards = [load_classifier(made.folder.path / f"{name}.safetensors").card for name in ("student", "old")]
    assert [card.epochs for card in cards] == [3, 3]


def test_joint_training_resumes_bit_for_bit(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Trainer(run("whole", epochs=2, variant="joint-training"), Silent())
    whole.train()
    broken = run("broken", epochs=2, variant="joint-training")
    trainer, plain = Trainer(broken, Silent()), Trainer.update

    def stopped(self: Trainer, batch: object) -> None:
        plain(self, batch)
        if self.updates == 25:
            self.stop(2)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stopped)
        trainer.train()
    assert not trainer.finished
    torch.manual_seed(99)
    resumed = Trainer(reopen(broken.folder.path), Silent(), latest_checkpoint(broken.folder.checkpoints))
    resumed.train()
    ours, theirs = whole.net.state_dict(), resumed.net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_joint_training_learns_old_images_with_their_own_labels(task, taught, batch) -> None:
    teacher = taught("mlp-6", classes=tuple("0123456789"))
    made = LearningWithoutForgetting(
        SupervisedConfig(
            batch_size=4, methods={"lwf": {"variant": "joint-training", "old_data": "digits", "old_weight": 2.0}}
        )
    )
    net = made.build(task("mlp-6"), [teacher])
    torch.manual_seed(5)
    terms = made.losses(net, batch, Progress(1, 0.0, 0.9))
    torch.manual_seed(5)
    drawn = made._old.train.random(2)
    old = net(drawn.images)[:, :10]
    assert float(terms["old"].detach()) == pytest.approx(2 * float(F.cross_entropy(old, drawn.labels).detach()))
