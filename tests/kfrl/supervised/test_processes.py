"""Runs in two processes of torchrun, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from kfrl.errors import UserError
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.supervised.launch import Session
from kfrl.supervised.run import _check_shares
from kfrl.supervised.trainer import Trainer
from kfrl.training.ranks import Ranks, _take_gpu
from kfrl.training.session import Silent

SETTINGS = {"data": "digits", "net": "conv-4", "epochs": 2, "batch_size": 64, "augment": "crop-flip", "pad": 1}


def torchrun(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "kfrl.cli.main", "supervised", "train", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def flags(folder: Path) -> list[str]:
    named = {**SETTINGS, "run_dir": folder}
    return [word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "run"
    done = torchrun(*flags(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Test error of the student") == 1
    return folder


def test_two_processes_give_the_numbers_of_one_up_to_rounding(two: Path, tmp_path: Path) -> None:
    one = Session.start({**SETTINGS, "run_dir": tmp_path / "one"}).complete(Silent())
    ours, theirs = load_file(one.folder / "student.safetensors"), load_file(two / "student.safetensors")
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-3)
    scores = json.loads((two / "eval.json").read_text())
    assert scores["test"]["correct"] == one.evaluation["test"]["correct"]
    assert scores["test"]["loss"] == pytest.approx(one.evaluation["test"]["loss"], rel=1e-3)
    for ours_row, their_row in zip(*(read_metrics(path / "metrics.csv") for path in (one.folder, two)), strict=True):
        assert their_row["losses/task"] == pytest.approx(ours_row["losses/task"], rel=1e-3)


def test_another_number_of_processes_cannot_go_on(two: Path) -> None:
    assert latest_checkpoint(two / "checkpoint").state["processes"] == 2
    session = Session.resume(two)
    with pytest.raises(
        UserError, match=r"number of processes of .* is 2, and now it is 1\. Resume the run with torchrun"
    ):
        session.prepare(Silent())


def test_if_another_process_ends_this_one_says_so_and_any_other_error_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(Session.start({**SETTINGS, "net": "mlp-4", "run_dir": tmp_path / "run"}).run, Silent())
    trainer.ranks = Ranks(0, 2)
    gone = RuntimeError("[.../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1771")
    monkeypatch.setattr(Trainer, "_run_epoch", Mock(side_effect=gone))
    assert trainer.train().failure == "Another of the 2 processes of this run has ended, so process 0 ends too."
    monkeypatch.setattr(Trainer, "_run_epoch", Mock(side_effect=RuntimeError("shapes cannot be multiplied")))
    trainer.failure = None
    with pytest.raises(RuntimeError, match="multiplied"):
        trainer.train()


def test_batches_have_to_be_shared_evenly() -> None:
    _check_shares(64, 2)
    with pytest.raises(UserError, match=r"63 images cannot be shared evenly by 2.*e\.g\. 62"):
        _check_shares(63, 2)


def test_a_process_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"Process 2 of 2 on this machine has no GPU: there are 1\. Start fewer"):
        _take_gpu("cuda")
    with pytest.raises(UserError, match="give --device cuda"):
        _take_gpu("cuda:0")
