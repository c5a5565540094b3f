"""What can go wrong with real worker processes: killed, interrupted, poisoned, hung, orphaned, out of disk."""

import multiprocessing
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import agents
from agents.engines.a3c import _Watchdog
from kfrl.errors import UserError
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.training.session import Silent, TrainingError

ENDLESS = 10_000_000
REPOSITORY = Path(__file__).parents[3]


class Training:
    """`kfrl train` in a process of its own, with its output read line by line."""

    def __init__(self, cwd: Path, *flags: str, **options: Any) -> None:
        self.cwd = cwd
        command = [sys.executable, "-m", "kfrl.cli.main", "train", *flags]
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )
        self.output = ""

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"ended without {text!r}:\n{self.output}")

    def finish(self) -> int:
        rest, _ = self.process.communicate(timeout=240)
        self.output += rest
        return self.process.returncode

    def workers(self) -> list[int]:
        """Process ids of the workers, in the order they were started; the evaluator would come last."""
        (server,) = [pid for pid in _children(self.process.pid) if b"forkserver" in _command_line(pid)]
        return _children(server)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    started: list[Training] = []

    def start(*flags: str, **options: Any) -> Training:
        started.append(Training(tmp_path, *flags, **options))
        return started[-1]

    yield start
    for training in started:
        if training.process.poll() is None:
            os.killpg(training.process.pid, signal.SIGKILL)
            training.process.communicate()


SMALL: dict[str, Any] = {
    **{"game": "Pong", "workers": 2, "envs_per_worker": 2, "convs": ((4, 8, 8),), "hidden": 8},
    **{"curve_points": 0, "eval_episodes": 0},
}
LARGEST = 4_000_000
"""Bytes: more than each file of a run with the usual net has, but its checkpoint."""
STEPS = 3_000


def usual(steps: int) -> list[str]:
    flags = "--game Pong --workers 2 --envs-per-worker 2 --curve-points 0 --eval-episodes 0 --run-dir run"
    return [*flags.split(), "--steps", str(steps)]


def small(steps: int) -> list[str]:
    return [*usual(steps), *"--convs 4 8 8 --hidden 8".split()]


def poison(directory: Path, code: str) -> dict[str, str]:
    """An environment in which every worker runs `code` before it trains."""
    (directory / "sitecustomize.py").write_text(
        "import sys\nif any('forkserver' in word for word in sys.orig_argv):\n"
        + textwrap.indent(textwrap.dedent(code), "    ")
    )
    return {**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{REPOSITORY}"}


REWARDS = """
import dataclasses
import numpy as np
import envs.atari
step, calls = envs.atari.AtariEnvs.step, 0

def poisoned(self, actions):
    global calls
    calls += 1
    transition = step(self, actions)
    if calls {when}:
        return dataclasses.replace(transition, rewards=transition.rewards * np.nan)
    return transition

envs.atari.AtariEnvs.step = poisoned
"""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run of `STEPS` that Ctrl-C ended, in `run`."""
    training = Training(tmp_path_factory.mktemp("user"), *usual(STEPS))
    interrupt(training, signal.SIGINT)
    return training


def interrupt(training: Training, number: signal.Signals) -> None:
    training.wait_for("steps ")
    os.killpg(training.process.pid, number)  # as a terminal's Ctrl-C: the workers get it too
    training.finish()


def said_how_to_go_on(training: Training, code: int) -> bool:
    assert training.process.returncode == code, training.output
    assert latest_checkpoint(training.cwd / "run" / "checkpoint").state["global_step"] > 0
    return "kfrl train --resume run" in training.output and "Traceback" not in training.output


def test_ctrl_c_writes_a_checkpoint_and_the_line_that_resumes(interrupted: Training) -> None:
    assert said_how_to_go_on(interrupted, 130)


def test_a_signal_writes_a_checkpoint_and_the_line_that_resumes(train: Callable[..., Training]) -> None:
    training = train(*small(ENDLESS))
    interrupt(training, signal.SIGHUP)  # as a terminal that is closed
    assert said_how_to_go_on(training, 129)


def test_resumed_run_goes_on_with_counters_schedules_statistics_and_curve(
    interrupted: Training, tmp_path: Path, train: Callable[..., Training]
) -> None:
    folder = shutil.copytree(interrupted.cwd / "run", tmp_path / "run")
    before = latest_checkpoint(folder / "checkpoint")
    rows_before = read_metrics(folder / "metrics.csv")

    second = train("--resume", "run")
    assert second.finish() == 0
    after = latest_checkpoint(folder / "checkpoint")
    rows = read_metrics(folder / "metrics.csv")
    assert f"Continuing from step {before.state['global_step']:,}" in second.output
    assert after.state["global_step"] >= STEPS
    assert after.state["session"] == 1
    assert after.state["updates"] > before.state["updates"]
    assert float(after.tensors["adam_steps"][0]) > float(before.tensors["adam_steps"][0]) > 0
    assert rows[: len(rows_before)] == rows_before
    steps = [row["global_step"] for row in rows]
    assert steps == sorted(set(steps))
    rates = [row["charts/learning_rate"] for row in rows]
    assert rates == sorted(rates, reverse=True)
    first_resumed = rows[len(rows_before)]
    expected = 1e-4 * 2**0.5 * (1 - first_resumed["global_step"] / STEPS)
    assert first_resumed["charts/learning_rate"] == pytest.approx(expected)


class Saboteur(Silent):
    """Sends a worker a signal once there are steps."""

    def __init__(self, worker: str, number: signal.Signals) -> None:
        self.worker, self.number = worker, number
        self.sent = False

    def update(self, status: Any) -> None:
        if status.done and not self.sent:
            (victim,) = [child for child in multiprocessing.active_children() if child.name == self.worker]
            os.kill(victim.pid or 0, self.number)
            self.sent = True


@pytest.mark.parametrize(
    ("worker", "number", "said"),
    [
        ("worker 1", signal.SIGKILL, "worker 1 was killed by SIGKILL. Out of memory?"),
        ("worker 0", signal.SIGSTOP, "Worker 0 has not made a step for 10 s"),
    ],
)
def test_a_worker_that_is_killed_or_hangs_stops_the_run_which_saves(
    worker: str, number: signal.Signals, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.engines.a3c.STOP_SECONDS", 1.0)
    saboteur = Saboteur(worker, number)
    with pytest.raises(TrainingError) as error:
        agents.train({**SMALL, "steps": ENDLESS, "worker_timeout": 10.0, "run_dir": tmp_path / "run"}, saboteur)
    assert saboteur.sent
    assert said in str(error.value)
    assert "kfrl train --resume" in str(error.value)
    assert latest_checkpoint(tmp_path / "run" / "checkpoint").state["global_step"] > 0


def test_failing_worker_shows_its_own_traceback(train: Callable[..., Training], tmp_path: Path) -> None:
    code = """
    import envs.atari
    def broken(self, actions):
        raise RuntimeError("the joystick fell off")
    envs.atari.AtariEnvs.step = broken
    """
    training = train(*small(ENDLESS), env=poison(tmp_path, code))
    assert training.finish() == 1
    assert "RuntimeError: the joystick fell off" in training.output
    assert "in broken" in training.output
    assert "Resume with: kfrl train --resume" in training.output


def test_single_non_finite_gradient_is_dropped_and_counted(train: Callable[..., Training], tmp_path: Path) -> None:
    training = train(*small(2_000), env=poison(tmp_path, REWARDS.format(when="== 20")))
    assert training.finish() == 0, training.output
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoint")
    assert checkpoint.state["dropped"] == 2  # one update in each of two workers
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())


def test_endless_non_finite_gradients_stop_the_run_with_a_clear_error(
    train: Callable[..., Training], tmp_path: Path
) -> None:
    training = train(*small(ENDLESS), env=poison(tmp_path, REWARDS.format(when=">= 20")))
    assert training.finish() == 1
    assert "50 updates in a row had a non-finite gradient" in training.output
    assert "Traceback" not in training.output
    assert "--resume" not in training.output
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoint")
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())


def test_shared_memory_without_room_is_a_sentence_before_any_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kfrl.machine.shutil.disk_usage", lambda _: SimpleNamespace(free=1_000))
    with pytest.raises(UserError, match=r"1 KB free in /dev/shm.* share about \d+ KB.*docker run --shm-size"):
        agents.train({**SMALL, "run_dir": tmp_path / "run"})


def test_a_run_that_was_suspended_has_no_hung_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000.0]
    monkeypatch.setattr("agents.engines.a3c.time.monotonic", lambda: clock[0])
    steps = torch.zeros(3, dtype=torch.int64)
    watchdog = _Watchdog(steps, timeout=20.0)
    clock[0] += 3_600.0
    assert watchdog.complaint([0, 1]) is None
    for _ in range(4):
        clock[0] += 4.0
        steps[1] += 1
        complaint = watchdog.complaint([0, 1])
    assert complaint is not None
    assert "Worker 1 has not" in complaint
    assert watchdog.complaint([0]) is None, "worker 1 may have finished"


def test_workers_end_when_their_parent_is_killed(train: Callable[..., Training]) -> None:
    training = train(*small(ENDLESS))
    training.wait_for("steps ")
    handles = [os.pidfd_open(pid) for pid in training.workers()]
    assert len(handles) == 2
    training.process.kill()
    for handle in handles:
        assert select.select([handle], [], [], 30.0)[0], "a worker outlived its parent"
        os.close(handle)


def test_full_disk_during_a_checkpoint_keeps_the_previous_one(
    interrupted: Training, tmp_path: Path, train: Callable[..., Training]
) -> None:
    directory = shutil.copytree(interrupted.cwd / "run", tmp_path / "run") / "checkpoint"
    before = latest_checkpoint(directory)
    assert before.path.stat().st_size > 1.2 * LARGEST

    def fill_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))

    second = train("--resume", "run", preexec_fn=fill_disk)
    assert second.finish() == 2
    assert "Could not write run/checkpoint" in second.output
    assert "Traceback" not in second.output
    after = latest_checkpoint(directory)
    assert after.path == before.path
    assert after.state == before.state
    assert [path.name for path in directory.iterdir()] == [before.path.name]
