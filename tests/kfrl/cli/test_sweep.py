import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kfrl.cli.main import main
from kfrl.cli.sweep import progress_line
from kfrl.sweep.descendants import alive, descendants
from kfrl.sweep.folder import FAILED, FINISHED, RUNNING, STOPPED, WAITING, SweepFolder, SweepPlan, TrialState, domain_of
from kfrl.sweep.space import Spec, make_trials

COUNTING = Path(__file__).parents[1] / "sweep"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sweep.yaml"
    path.write_text("settings: {game: Pong, workers: 1, seed: {range: 2}}\n")
    return path


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["sweep", *arguments]) == 2
    return capsys.readouterr().err


def test_more_cpus_than_there_are(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text("settings: {game: Pong, workers: 4000}\n")
    assert "needs 4000 CPUs, one for each of its processes, and this machine has" in complaint(capsys, str(spec))


def test_a_missing_file_and_a_wrong_one(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean" in complaint(capsys, "sweep.yml")
    spec.write_text("settings: {game: Pogn}\n")
    assert "sweep.yaml: Runs 'run': Unknown game 'Pogn'. Did you mean 'Pong'?" in complaint(capsys, str(spec))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("sets: {game: Pong}", "Unknown key sets. Did you mean settings?"),
        ("settings: {game: Pong, seed: {grid: []}}", "seed: {grid: [..]} expects at least one value, got []"),
        ("settings: {game: Pong, lr: {uniform: [2, 1]}}", "expects low below high, got [2, 1]. Swap them: [1, 2]"),
        ("settings: {game: {grid: [Pong, pong]}, workers: 1}", "have the same folder, pong-s1"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused_and_leaves_nothing(
    spec: Path, capsys: pytest.CaptureFixture[str], file: str, words: str
) -> None:
    spec.write_text(file)
    assert words in complaint(capsys, str(spec))
    assert [path.name for path in spec.parent.iterdir()] == ["sweep.yaml"]


def test_what_is_found_wrong_when_it_is_looked_up_leaves_nothing_either(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kfrl.cli.sweep.check_ray", lambda address: None)
    monkeypatch.setattr("kfrl.sweep.estimate.in_fresh_process", lambda function, *given: function(*given))
    spec.write_text("runs: images\nsettings: {data: digitts, net: mlp-6}\n")
    assert "Unknown data set 'digitts'. Did you mean 'digits'?" in complaint(capsys, str(spec))
    assert not (spec.parent / "runs").exists()


def test_a_storage_folder_that_is_another_sweeps_or_cannot_be_made(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, counting: Any
) -> None:
    monkeypatch.setattr("kfrl.cli.sweep.check_ray", lambda address: None)
    monkeypatch.setattr("kfrl.sweep.estimate.in_fresh_process", lambda *_: None)
    folder, _ = counting(name="x", seed={"range": 3})
    assert "holds another sweep: run s1 differs in game, name" in complaint(
        capsys, str(spec), "--storage", str(folder.path)
    )
    assert "cannot be made: Not a directory. Give another --storage" in complaint(
        capsys, str(spec), "--storage", str(spec / "inside")
    )
    assert "is not the folder of a sweep" in complaint(capsys, str(spec), "--storage", str(spec.parent))


def test_too_little_shared_memory(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert "docker run --shm-size" in complaint(capsys, str(spec))


def test_ray_is_not_installed(spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'kfrl[sweep]'" in complaint(capsys, str(spec))


def test_an_address_that_nobody_answers(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="Ray Tune is not installed: pip install 'kfrl[sweep]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = taken.getsockname()[1]
        said = complaint(capsys, str(spec), "--address", f"127.0.0.1:{port}")
    assert f"No cluster answers at 127.0.0.1:{port}" in said and "ray start --head" in said
    assert "HOST:PORT or auto, got 'there'" in complaint(capsys, str(spec), "--address", "there")


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SweepFolder, SweepPlan]]:
    monkeypatch.syspath_prepend(str(COUNTING))
    sys.modules.pop("counting", None)

    def build(**settings: Any) -> tuple[SweepFolder, SweepPlan]:
        plan = SweepPlan("counting", ())
        plan = replace(plan, trials=tuple(make_trials(Spec(settings=settings), domain_of(plan))))
        folder = SweepFolder(tmp_path / "sweep")
        folder.prepare(plan)
        return folder, plan

    return build


def test_the_line_of_a_sweep(counting: Any) -> None:
    _, plan = counting(name="x", seed={"range": 4})
    states = {
        "s1": TrialState(FINISHED, 10, 1.0, objective=3.0),
        "s2": TrialState(RUNNING, 5, 0.5, rate=80.0, objective=4.5),
        "s3": TrialState(FAILED, 0, 0.25),
        "s4": TrialState(WAITING),
    }
    assert progress_line(plan, states, 90.0) == (
        "1 running · 1 waiting · 1 finished · 1 failed · 62.5 % · 80 steps/s · ETA 0:01:30 · best 4.5 (s2)"
    )


CODE = """
import sys; from pathlib import Path
from kfrl.cli.sweep import run_sweep; from kfrl.sweep.folder import SweepFolder
sys.exit(run_sweep(SweepFolder(Path(sys.argv[1])), None))
"""


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def test_a_sweep_whose_driver_is_killed_leaves_nothing(counting: Any) -> None:
    pytest.importorskip("ray", reason="Ray Tune is not installed: pip install 'kfrl[sweep]'")
    folder, plan = counting(name="x", does={"grid": ["finish", "refuse", "wait"]})
    path = os.pathsep.join([str(COUNTING), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder.path)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wanted = [FINISHED, FAILED, RUNNING]
        wait_for(lambda: [state.state for state in folder.states_noted(plan).values()] == wanted)
        tree = descendants(process.pid)
        driver = next(pid for pid in tree if b"kfrl.sweep.driver" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(driver, signal.SIGKILL)
        said, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert not [pid for pid in tree if alive(pid)]
    assert "Ray ended early" in complaint
    assert "refuse-s1 failed: No such thing." in said
    assert [state.state for state in folder.states(plan).values()] == [FINISHED, FAILED, STOPPED]
