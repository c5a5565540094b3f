import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from kfrl.errors import UserError
from kfrl.runs.checkpoint import latest_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[3]


def save(directory: Path, step: int) -> Path:
    tensors = {"net.w": torch.full((2, 3), float(step)), "adam_steps": torch.arange(3)}
    return save_checkpoint(directory, step, tensors, {"global_step": step})


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_tensors_and_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "net.conv": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "net.scalar": torch.tensor(0.1, dtype=torch.float64),
        "exp_avg.view": torch.randn(10)[2:7],
        "empty": torch.zeros(0, 3),
        "count": torch.tensor([2**40]),
        "bits": torch.tensor([torch.nan, torch.inf, -0.0]),
    }
    state = {"global_step": 2**40, "elapsed_sec": 0.1, "name": "größer", "list": [1, [2]], "none": None}
    path = save_checkpoint(tmp_path / "checkpoint", 5, tensors, state)
    loaded = latest_checkpoint(tmp_path / "checkpoint")
    assert (loaded.path, loaded.state) == (path, state)
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name].nan_to_num(7.0), tensor.nan_to_num(7.0)), name


def test_parameters_that_share_memory_are_saved(tmp_path: Path) -> None:
    flat = torch.arange(6.0)
    save_checkpoint(tmp_path, 1, {"a": flat[:4].view(2, 2), "b": flat[2:]}, {})
    loaded = latest_checkpoint(tmp_path).tensors
    assert loaded["a"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert loaded["b"].tolist() == [2.0, 3.0, 4.0, 5.0]


def test_tensors_by_prefix(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(1) for name in ("net.a.net.b", "net.c", "exp_avg.net.c", "network")}
    save_checkpoint(tmp_path, 1, tensors, {})
    assert set(latest_checkpoint(tmp_path).prefixed("net.")) == {"a.net.b", "c"}


def test_a_net_is_loaded_or_refused_with_what_differs(tmp_path: Path) -> None:
    saved = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5))
    save_checkpoint(tmp_path, 1, {f"net.{name}": tensor for name, tensor in saved.state_dict().items()}, {})
    checkpoint, same = latest_checkpoint(tmp_path), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5))
    checkpoint.load_net(same)
    assert torch.equal(same[1].weight, saved[1].weight)
    with pytest.raises(UserError, match=r"0\.weight: \(2, 3\) instead of \(2, 4\)\)\. Resume with .* wrote it, kfrl "):
        checkpoint.load_net(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 5)))
    with pytest.raises(UserError, match=r"1\.bias: \(5,\) instead of none; 1\.weight: \(5, 2\) instead of none\)"):
        checkpoint.load_net(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(UserError, match=r"1\.bias: \(5,\) instead of none and 3 more\)"):
        checkpoint.load_net(nn.Sequential(OrderedDict(first=nn.Linear(3, 2))))


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 90, 1_000, 20_000_000):
        save(tmp_path, step)
    assert files(tmp_path) == ["step-000000001000.safetensors", "step-000020000000.safetensors"]
    assert latest_checkpoint(tmp_path).state == {"global_step": 20_000_000}


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    save_checkpoint(tmp_path, 2, {}, {"again": True})
    assert len(files(tmp_path)) == 2
    assert latest_checkpoint(tmp_path).state == {"again": True}


def test_a_crash_in_the_middle_leaves_the_checkpoints_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    before = files(tmp_path)

    def crash(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("kfrl.runs.checkpoint.save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert files(tmp_path) == before
    assert latest_checkpoint(tmp_path).state == {"global_step": 1}


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from kfrl.runs.checkpoint import save_checkpoint
from kfrl.errors import UserError

torch.set_num_threads(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path(sys.argv[1]), 3, {"w": torch.zeros(200_000)}, {"global_step": 3})
except UserError as error:
    print("UserError:", error)
"""


def test_a_disk_that_fills_up_leaves_the_checkpoints_as_they_were(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    before = files(tmp_path)
    answer = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert answer.stdout.startswith("UserError: Could not write"), answer.stdout + answer.stderr
    assert "File too large" in answer.stdout
    assert files(tmp_path) == before
    assert latest_checkpoint(tmp_path).tensors["net.w"].tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("length", [0, 5, 9, 60, -1])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, length: int) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    newest.write_bytes(newest.read_bytes()[:length])
    assert latest_checkpoint(tmp_path).state == {"global_step": 1}


def test_without_a_whole_checkpoint_there_is_nothing_to_resume_from(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="There is no checkpoint to resume from"):
            latest_checkpoint(directory)
    save(tmp_path, 1).write_bytes(b"{}")
    with pytest.raises(UserError, match=r"damaged: step-000000000001\.safetensors"):
        latest_checkpoint(tmp_path)
