"""What a machine is found to have, on machines that do not have it."""

import math
import resource
from collections import namedtuple
from pathlib import Path

import pytest

from agents.config import TrainConfig
from agents.run import resolve
from kfrl import machine
from kfrl.cli.doctor import check_roms
from kfrl.cli.main import main
from kfrl.errors import UserError
from kfrl.machine import allow_open_files

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MB are free, everywhere."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(20e6, 10e6, 10e6))


@pytest.mark.parametrize(("limit", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)])
def test_the_quota_of_a_container_counts(
    limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_seen_cores", lambda: 8)
    assert machine.cores() == cores


def test_a_machine_without_proc_and_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "none")
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.sysconf", lambda name: (_ for _ in ()).throw(ValueError("unrecognized configuration name")))
    found = {finding.name: finding for finding in machine.findings(tmp_path)}
    assert found["memory"].value == "unknown"
    assert not found["shared memory"].problem
    assert machine._quota() == math.inf


def test_too_little_shared_memory_and_disk_come_with_what_mends_them(free: None, tmp_path: Path) -> None:
    shared, disk = machine.warnings(tmp_path / "runs" / "new", shared=64e6, written=2e9)
    assert "10.0 MB free in /dev/shm" in shared
    assert "share about 64.0 MB" in shared
    assert "docker run --shm-size" in shared
    assert "less than 2.0 GB" in disk
    assert machine.warnings(tmp_path, shared=1e6, written=1e6) == []


def test_a_folder_that_cannot_be_written_to_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert machine.disk(tmp_path / "runs").problem == f"{tmp_path} cannot be written to."


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    assert machine.threads().fix == "export OMP_NUM_THREADS=2"


def test_a_driver_without_a_build_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("torch.version.cuda", None)
    assert "built for the CPU only" in machine.gpus().value
    monkeypatch.setattr("torch.version.cuda", "12.8")
    assert "needs a driver for CUDA 12.8" in machine.gpus().problem
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not machine.gpus().problem


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("no-such-package",))
    monkeypatch.setattr(machine, "EXTRAS", {"no-such-extra": "nothing"})
    *_, lost, extra = machine.versions()
    assert lost.fix == "pip install no-such-package"
    assert not extra.problem, "what kfrl can do without is no problem"
    assert "only for nothing: pip install no-such-extra" in extra.value


def test_roms_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "games" in check_roms().value
    monkeypatch.setattr("envs.games.all_games", lambda: ())
    assert "pip install --force-reinstall ale-py" in check_roms().warning


def test_the_doctor_says_it_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for name in ("Python", "torch", "cores", "threads", "shared memory", "disk", "GPU", "ROMs", "Nothing is missing"):
        assert name in told
    assert not list(tmp_path.iterdir())


def test_the_doctors_exit_code_says_that_something_is_wrong(free: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--runs", "elsewhere"]) == 1
    told = capsys.readouterr().out
    assert "--shm-size" in told
    assert "disk: 10.0 MB free for elsewhere. That is less than 1.0 GB." in told


@pytest.mark.parametrize(("hard", "allowed"), [(4_096, (208, 4_096)), (resource.RLIM_INFINITY, (208, -1))])
def test_more_files_may_be_opened_where_the_user_may_say_so(
    hard: int, allowed: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("kfrl.machine.resource.getrlimit", lambda _: (64, hard))
    monkeypatch.setattr("kfrl.machine.resource.setrlimit", lambda _, limits: asked.append(limits))
    allow_open_files(208, "give fewer --workers")
    allow_open_files(64, "give fewer --workers")
    assert asked == [allowed]


def test_too_few_files_are_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kfrl.machine.resource.getrlimit", lambda _: (64, 64))
    with pytest.raises(UserError, match=r"opens about 208 files.*may open 64.*ulimit -n 208.*fewer --workers"):
        resolve(TrainConfig(game="Pong", preset="paper"))
    resolve(TrainConfig(game="Pong", algo="a2c"))
