"""Whole runs of the methods that have stages or several nets: what they leave, and that a broken one goes on."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.evaluate import evaluate
from kfrl.supervised.launch import Session
from kfrl.supervised.methods.collaborative import Edge, Node
from kfrl.supervised.run import Run, reopen
from kfrl.supervised.trainer import Trainer
from kfrl.training.session import Silent

GRAPH = {
    "nodes": (Node("small"), Node("large", net="mlp-20"), Node("old", teacher="digits")),
    "edges": (
        Edge("labels", "small"),
        Edge("labels", "large"),
        Edge("old", "small", "linear"),
        Edge("large", "small", "correct"),
        Edge("small", "large"),
    ),
}
PHI = {
    "extension": "uniform",
    "phi_epochs": 2,
    "old_weight": 0.5,
    "teacher_weight": 0.01,
    "noise_weight": 0.5,
    "hessian_weight": 1e-3,
    "old_images": 500,
}
SETTINGS = {
    "fitnets": {"net": "mlp-16-dropout"},
    "fsp": {"net": "resnet-8"},
    "mutual": {"methods": {"mutual": {"peers": "mlp-12-dropout"}}},
    "collaborative": {"methods": {"collaborative": GRAPH}},
    "born-again": {"methods": {"born-again": {"generations": 2}}, "epochs": 1},
    "mimic": {"lr": 0.01},
    "kd": {},
    "fine-tune": {"net": "mlp-24"},
    "knowledge-flow": {"net": "mlp-16-dropout", "methods": {"knowledge-flow": {"independence_at": 0.9}}},
    "anti-distillation": {"net": "mlp-30", "methods": {"anti-distillation": PHI}},
}
TAUGHT = {"fsp": "resnet"} | dict.fromkeys(
    ("fitnets", "collaborative", "mimic", "kd", "fine-tune", "knowledge-flow", "anti-distillation"), "mlp"
)


def train(run: Run, resume: bool = False) -> Trainer:
    trainer = Trainer(run, Silent(), latest_checkpoint(run.folder.checkpoints) if resume else None)
    outcome = trainer.train()
    assert outcome.failure is None
    return trainer


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run each of two small nets."""
    folders = {}
    for name, net in (("mlp", "mlp-24"), ("resnet", "resnet-8")):
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        settings = SupervisedConfig(data="digits", net=net, epochs=1, batch_size=64, run_dir=folders[name])
        train(Session.start(settings).run)
    return folders


@pytest.fixture
def run(tmp_path: Path, teachers: dict[str, Path]) -> Callable[..., Run]:
    def build(method: str, name: str, **changed: object) -> Run:
        settings = {"data": "digits", "net": "mlp-16", "epochs": 2, "batch_size": 64, **SETTINGS[method], **changed}
        if method in TAUGHT:
            settings["teachers"] = str(teachers[TAUGHT[method]])
        return Session.start(SupervisedConfig(method=method, run_dir=tmp_path / name, **settings)).run

    return build


@pytest.mark.parametrize("method", SETTINGS)
def test_a_resumed_run_equals_an_uninterrupted_one_and_ships_a_plain_net(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = train(run(method, "whole"))
    broken, plain, count = run(method, "broken"), Trainer.update, 0

    def stopped(trainer: Trainer, batch: object) -> None:
        nonlocal count
        plain(trainer, batch)
        count += 1
        # In the second epoch: the second stage of those that have stages.
        if count == 25:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stopped)
        first = train(broken)
    assert not first.finished
    torch.manual_seed(99)
    resumed = train(reopen(broken.folder.path), resume=True)
    ends = [latest_checkpoint(made.run.folder.checkpoints).tensors for made in (whole, resumed)]
    assert set(ends[0]) == set(ends[1])
    assert not [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])]
    result = resumed.finish()
    assert result["test"]["images"] == 359
    shipped = load_file(broken.folder.student)
    alone = broken.task.make_net()
    alone.load_state_dict(shipped)
    assert sum(p.numel() for p in alone.parameters()) == result["deployed_parameters"]
    losses = [name for row in read_metrics(broken.folder.metrics) for name in row if name.startswith("losses/")]
    assert losses


@pytest.mark.parametrize("method", ["mutual", "collaborative", "knowledge-flow"])
def test_what_is_scored_beside_the_student_is_of_its_epoch(run: Callable[..., Run], method: str) -> None:
    settings = {"epochs": 6, "schedule": "constant", "lr": 0.5}
    if method == "knowledge-flow":
        settings["methods"] = {"knowledge-flow": {"independence_at": None}}
    made = run(method, "noisy", **settings)
    trainer = train(made)
    rows = read_metrics(made.folder.metrics)
    result = trainer.finish()
    kept = result["kept_epoch"]
    assert kept < len(rows), "a run that is best in its last epoch shows nothing here"
    now = trainer.evaluate_on_validation()
    assert result["others"]
    for name, score in now.items():
        assert score.accuracy == rows[kept - 1][f"val/accuracy_{name}" if name else "val/accuracy"]
    again = Trainer(reopen(made.folder.path), Silent(), latest_checkpoint(made.folder.checkpoints))
    assert again.finish() == result


def test_every_generation_is_kept_as_the_last_one_is(run: Callable[..., Run]) -> None:
    made = run("born-again", "noisy", epochs=5, schedule="constant", lr=0.5)
    trainer = train(made)
    curve = [row["val/accuracy"] for row in read_metrics(made.folder.metrics)]
    stages = [curve[5 * index : 5 * index + 5] for index in range(3)]
    assert any(max(stage) > stage[-1] for stage in stages[:-1])
    trainer.finish()
    for net, stage in zip(trainer.net, stages, strict=True):
        assert evaluate(net, trainer.validation, 10).accuracy == max(stage)
