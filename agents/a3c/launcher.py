"""The parent of a run: starts the workers, watches over them, logs, checkpoints, stops."""

from __future__ import annotations

import multiprocessing.connection
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Protocol

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from agents.a3c.evaluator import Snapshot, run_evaluator
from agents.a3c.shared_adam import SharedModel, bind, named_views
from agents.a3c.worker import Job, Report, run_worker, worker_environment
from agents.runs import Run
from kfrl.checkpoint import Checkpoint, save_checkpoint
from kfrl.metrics import MetricsWriter
from kfrl.seeding import seed_everything, stream

ROWS = 500
"""How many rows a run's metrics.csv gets."""
RECENT = 100
"""Games in the running mean of the raw return."""


@dataclass(frozen=True)
class Status:
    """Where a run stands, for whoever shows it."""

    step: int
    steps: int
    steps_per_sec: float
    recent_return: float | None
    """Mean raw score of the last games that ended."""
    student_return: float | None
    """Mean raw score of the student alone when it was last evaluated."""
    metrics: dict[str, float]
    """The method's own, e.g. p per layer."""
    dropped: int

    @property
    def eta_sec(self) -> float | None:
        """Seconds to go at the present rate."""
        return (self.steps - self.step) / self.steps_per_sec if self.steps_per_sec else None


class Display(Protocol):
    """Shows a run; the command line brings one."""

    def update(self, status: Status) -> None:
        """Show where the run stands."""

    def say(self, text: str) -> None:
        """Print a line."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    net: nn.Module
    """The net that trained, links and all."""
    step: int
    stopped_by: int | None = None
    """The signal that stopped it."""
    failure: str | None = None
    """What ended it early: a worker's traceback, or the way it died."""


@dataclass
class _Window:
    """What was reported since the last row of metrics."""

    sums: dict[str, float] = field(default_factory=dict)
    updates: int = 0
    scores: list[float] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    step: int = 0


class Launcher:
    """One run of one A3C model."""

    def __init__(self, run: Run, display: Display, checkpoint: Checkpoint | None = None) -> None:
        """Build the model in shared memory, from a checkpoint if there is one."""
        self.run, self.display = run, display
        config = run.config
        seed_everything(stream(config.seed, 0))
        self.method = run.method()
        self.net = self.method.build(run.spec, run.teachers)
        self._groups = self.method.parameter_groups(self.net)
        self.shared = SharedModel.create(self._groups, config.workers)
        bind(self._groups, self.shared.parameters)
        self._session, self._elapsed = 0, 0.0
        if checkpoint is not None:
            self._restore(checkpoint)
        self._started = time.monotonic()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._student_return: float | None = None
        self._window = _Window(step=self.shared.global_step)
        self._rate = 0.0
        self._metrics = MetricsWriter(run.folder.path, None if checkpoint is None else self.shared.global_step)
        self._signal: int | None = None
        self._failure: str | None = None

    def train(self) -> Outcome:
        """Run the workers until the steps are done, a signal comes or a worker dies; then save."""
        for teacher in self.run.teachers:
            teacher.net.share_memory()
        with self._signals(), worker_environment(), self._processes() as (workers, evaluator):
            self._watch(workers, evaluator)
            self._stop(workers)
        self._log_row()
        self._metrics.close()
        self.save()
        return Outcome(self.net, self.shared.global_step, self._signal, self._failure)

    def save(self) -> None:
        """Write a checkpoint and the student as it is."""
        step = self.shared.global_step
        state = {
            "global_step": step,
            "updates": int(self.shared.updates.sum()),
            "dropped": int(self.shared.dropped.sum()),
            "session": self._session,
            "elapsed_sec": self._elapsed + time.monotonic() - self._started,
        }
        tensors: dict[str, Tensor] = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for name in ("exp_avg", "exp_avg_sq"):
            views = named_views(self.net, self._groups, getattr(self.shared, name))
            tensors |= {f"{name}.{parameter}": view for parameter, view in views.items()}
        tensors["adam_steps"] = self.shared.adam_steps
        save_checkpoint(self.run.folder.checkpoints, step, tensors, state)
        self.run.save_student(self.method.export(self.net), step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.net.load_state_dict(checkpoint.prefixed("net."))
        for name in ("exp_avg", "exp_avg_sq"):
            views = named_views(self.net, self._groups, getattr(self.shared, name))
            for parameter, saved in checkpoint.prefixed(f"{name}.").items():
                views[parameter].copy_(saved)
        self.shared.adam_steps.copy_(checkpoint.tensors["adam_steps"])
        self.shared.steps[0] = checkpoint.state["global_step"]
        self.shared.updates[0] = checkpoint.state["updates"]
        self.shared.dropped[0] = checkpoint.state["dropped"]
        self._session = checkpoint.state["session"] + 1
        self._elapsed = checkpoint.state["elapsed_sec"]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _processes(self) -> Iterator[tuple[dict[Connection, BaseProcess], Connection | None]]:
        context = mp.get_context("spawn")
        config = self.run.config
        workers: dict[Connection, BaseProcess] = {}
        evaluator: Connection | None = None
        others: list[BaseProcess] = []
        try:
            for rank in range(config.workers):
                ours, theirs = context.Pipe(duplex=False)
                job = Job(
                    rank,
                    config,
                    self.run.protocol,
                    self.run.spec,
                    self.run.teachers,
                    self.shared,
                    self._session,
                )
                process: BaseProcess = context.Process(
                    target=run_worker, args=(job, theirs), daemon=True, name=f"worker {rank}"
                )
                process.start()
                theirs.close()
                workers[ours] = process
            if config.curve_points:
                evaluator, theirs = context.Pipe()
                seed = stream(config.seed, 999_999)
                player = context.Process(
                    target=run_evaluator,
                    args=(self.run.protocol, config.curve_episodes, seed, theirs),
                    daemon=True,
                )
                player.start()
                theirs.close()
                others.append(player)
            yield workers, evaluator
        finally:
            self.shared.stop[0] = 1
            for process in [*workers.values(), *others]:
                if process.is_alive():
                    process.kill()
                process.join()

    def _watch(self, workers: dict[Connection, BaseProcess], evaluator: Connection | None) -> None:
        """Take reports, log, evaluate and checkpoint until all workers are done or something ends the run."""
        config = self.run.config
        row = _Every(config.steps, ROWS, self.shared.global_step)
        curve = _Every(config.steps, config.curve_points, self.shared.global_step - 1)
        watchdog = _Watchdog(self.shared.steps, config.worker_timeout)
        running, saved, evaluating = set(workers), time.monotonic(), False
        while running and self._signal is None and self._failure is None:
            pipes = [*running, *([evaluator] if evaluator is not None else [])]
            for ready in multiprocessing.connection.wait(pipes, timeout=0.2):
                assert isinstance(ready, Connection)
                if ready is evaluator:
                    evaluating = not self._take_curve_point(ready)
                elif not self._take_report(ready, workers[ready]):
                    running.discard(ready)
            step = self.shared.global_step
            if row.due(step):
                self._log_row()
            if evaluator is not None and curve.due(step) and not evaluating:
                evaluator.send(self._snapshot(step))
                evaluating = True
            if time.monotonic() - saved > config.checkpoint_every:
                self.save()
                saved = time.monotonic()
            if running == set(workers):
                self._fail(watchdog.complaint())
            self.display.update(self._status())

    def _fail(self, reason: str | None) -> None:
        """Keep the first reason to stop; the others follow from it."""
        self._failure = self._failure or reason

    def _stop(self, workers: dict[Connection, BaseProcess]) -> None:
        """Let the workers finish their rollout; `_processes` kills those that do not."""
        self.shared.stop[0] = 1
        deadline = time.monotonic() + 10.0
        for pipe, process in workers.items():
            while process.is_alive() and time.monotonic() < deadline:
                if pipe.poll(0.05) and not self._take_report(pipe, process):
                    process.join(1.0)
                    break

    def _take_report(self, pipe: Connection, process: BaseProcess) -> bool:
        """Take one report; False when the worker has closed its pipe."""
        try:
            report: Report = pipe.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            if process.exitcode:
                self._fail(_way_of_death(process))
            return False
        if report.error is not None:
            self._fail(f"{process.name} failed:\n{report.error}")
            return True
        self._window.updates += report.updates
        for name, value in report.sums.items():
            self._window.sums[name] = self._window.sums.get(name, 0.0) + value
        for _, episode in report.episodes:
            self._window.scores.append(episode.score)
            self._recent.append(episode.score)
        return True

    def _take_curve_point(self, evaluator: Connection) -> bool:
        """Log what the student alone scored; False when the evaluator died."""
        try:
            step, scores = evaluator.recv()
        except (EOFError, ConnectionResetError):
            self._fail("The evaluator process died.")
            return False
        if scores:
            self._student_return = float(sum(scores) / len(scores))
            self._metrics.log(step, {"eval/mean_return": self._student_return})
        return True

    def _snapshot(self, step: int) -> Snapshot:
        student = self.method.export(self.net)
        arch: dict[str, Any] = student.arch  # type: ignore[assignment]
        weights = {name: tensor.detach().contiguous().numpy().copy() for name, tensor in student.state_dict().items()}
        return Snapshot(step, arch, len(self.run.spec.actions), weights)

    def _log_row(self) -> None:
        window, step, now = self._window, self.shared.global_step, time.monotonic()
        if step == window.step:
            return
        self._rate = (step - window.step) / (now - window.since)
        progress = min(1.0, step / self.run.config.steps)
        values = {name: value / window.updates for name, value in window.sums.items()}
        if window.scores:
            values["charts/episodic_return"] = sum(window.scores) / len(window.scores)
        values |= {
            "charts/episodes": float(len(window.scores)),
            "charts/learning_rate": self.run.config.learning_rate * (1.0 - progress),
            "charts/updates": float(self.shared.updates.sum()),
            "charts/dropped_updates": float(self.shared.dropped.sum()),
            "time/steps_per_sec": self._rate,
            "time/elapsed_sec": self._elapsed + now - self._started,
        }
        self._metrics.log(step, values | self._method_metrics(progress))
        self._window = _Window(step=step)

    def _method_metrics(self, progress: float) -> dict[str, float]:
        self.method.before_rollout(self.net, progress)
        return self.method.metrics(self.net)

    def _status(self) -> Status:
        step, total = self.shared.global_step, self.run.config.steps
        return Status(
            step=step,
            steps=total,
            steps_per_sec=self._rate,
            recent_return=sum(self._recent) / len(self._recent) if self._recent else None,
            student_return=self._student_return,
            metrics=self._method_metrics(min(1.0, step / total)),
            dropped=int(self.shared.dropped.sum()),
        )


class _Every:
    """Says when the next of `count` even parts of a run is over."""

    def __init__(self, total: int, count: int, start: int) -> None:
        self._part = max(1, total // count) if count else 0
        self._next = self._after(start)

    def _after(self, step: int) -> int:
        return (step // self._part + 1) * self._part if self._part else 0

    def due(self, step: int) -> bool:
        if not self._part or step < self._next:
            return False
        self._next = self._after(step)
        return True


class _Watchdog:
    """Notices a worker whose step counter stands still."""

    def __init__(self, steps: Tensor, timeout: float) -> None:
        self._steps, self._timeout = steps, timeout
        self._last = steps[1:].clone()
        self._moved = torch.full(self._last.shape, time.monotonic(), dtype=torch.float64)

    def complaint(self) -> str | None:
        now, steps = time.monotonic(), self._steps[1:].clone()
        self._moved[steps != self._last] = now
        self._last = steps
        hung = (now - self._moved > self._timeout).nonzero()
        if not len(hung):
            return None
        return (
            f"Worker {int(hung[0])} has not made a step for {self._timeout:.0f} s: it hangs. "
            "(--worker-timeout sets this limit.)"
        )


def _way_of_death(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        hint = " Out of memory?" if name == "SIGKILL" else ""
        return f"{process.name} was killed by {name}.{hint}"
    return f"{process.name} ended with exit code {code}."
