"""What every engine does around its updates: log, evaluate along the way, checkpoint, stop on a signal, save."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from agents.evaluator import Evaluator, Snapshot
from agents.runs import Run
from agents.shared_model import SharedModel, bind, named_views
from agents.update import Report
from kfrl.checkpoint import Checkpoint, save_checkpoint
from kfrl.metrics import MetricsWriter
from kfrl.seeding import seed_everything, stream
from kfrl.signals import noting_signals

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
    """What ended it early: a learner's traceback, or the way it died."""


@dataclass
class _Window:
    """What was reported since the last row of metrics."""

    step: int
    report: Report = field(default_factory=Report)
    since: float = field(default_factory=time.monotonic)


class Trainer(ABC):
    """One run of one model; an engine says how its updates come about."""

    def __init__(self, run: Run, display: Display, checkpoint: Checkpoint | None = None) -> None:
        """Build the model, from a checkpoint if there is one."""
        self.run, self.display = run, display
        config = run.config
        seed_everything(stream(config.seed, 0))
        self.method = run.method()
        self.net = self.method.build(run.spec, run.teachers)
        self.place()
        self.groups = self.method.parameter_groups(self.net)
        self.shared = SharedModel.create(self.groups, config.shape.workers)
        bind(self.groups, self.shared.parameters)
        self.session, self._elapsed = 0, 0.0
        if checkpoint is not None:
            self._restore(checkpoint)
        self._started = self._saved = time.monotonic()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._student_return: float | None = None
        self._window = _Window(self.shared.global_step)
        self._rate = 0.0
        self._metrics = MetricsWriter(run.folder.path, None if checkpoint is None else self.shared.global_step)
        self._row = _Every(config.steps, ROWS, self.shared.global_step)
        self._curve = _Every(config.steps, config.curve_points, self.shared.global_step - 1)
        self._evaluator: Evaluator | None = None
        self._signal: int | None = None
        self._failure: str | None = None

    @abstractmethod
    def place(self) -> None:
        """Put net and teachers where they train."""

    @abstractmethod
    def learn(self) -> None:
        """Update until the steps are done or `stopping`; `take` what the learners report, and `tick` often."""

    @property
    def progress(self) -> float:
        """Share of the run's steps that are done."""
        return min(1.0, self.shared.global_step / self.run.config.steps)

    @property
    def stopping(self) -> bool:
        """Whether a signal or a failure ends the run."""
        return self._signal is not None or self._failure is not None

    def train(self) -> Outcome:
        """Learn until the steps are done, a signal comes or a learner fails; then save."""
        config = self.run.config
        with noting_signals(self._note):
            if config.curve_points:
                seed = stream(config.seed, 999_999)
                self._evaluator = Evaluator(self.run.protocol, config.curve_episodes, seed)
            try:
                self.learn()
            finally:
                if self._evaluator is not None:
                    self._evaluator.close()
        self._log_row()
        self._metrics.close()
        self.save()
        return Outcome(self.net, self.shared.global_step, self._signal, self._failure)

    def take(self, report: Report) -> None:
        """Count what a learner reports."""
        window = self._window.report
        window.updates += report.updates
        for name, value in report.sums.items():
            window.sums[name] = window.sums.get(name, 0.0) + value
        window.episodes += report.episodes
        self._recent.extend(episode.score for episode in report.episodes)

    def fail(self, reason: str | None) -> None:
        """Keep the first reason to stop; the others follow from it."""
        self._failure = self._failure or reason

    def tick(self) -> None:
        """Log, evaluate, checkpoint and show, each when it is due."""
        step = self.shared.global_step
        if self._row.due(step):
            self._log_row()
        self._evaluate_along(step)
        if time.monotonic() - self._saved > self.run.config.checkpoint_every:
            self.save()
            self._saved = time.monotonic()
        self.display.update(self._status())

    def _evaluate_along(self, step: int) -> None:
        if self._evaluator is None:
            return
        try:
            for at, scores in self._evaluator.answers():
                self._student_return = float(sum(scores) / len(scores))
                self._metrics.log(at, {"eval/mean_return": self._student_return})
        except ChildProcessError as error:
            self.fail(str(error))
            return
        if not self._evaluator.busy and self._curve.due(step):
            self._evaluator.ask(self._snapshot(step))

    def _snapshot(self, step: int) -> Snapshot:
        student = self.method.export(self.net)
        arch: dict[str, Any] = student.arch  # type: ignore[assignment]
        weights = {
            name: tensor.detach().cpu().contiguous().numpy().copy() for name, tensor in student.state_dict().items()
        }
        return Snapshot(step, arch, len(self.run.spec.actions), weights)

    def save(self) -> None:
        """Write a checkpoint and the student as it is."""
        step = self.shared.global_step
        state = {
            "global_step": step,
            "updates": int(self.shared.updates.sum()),
            "dropped": int(self.shared.dropped.sum()),
            "session": self.session,
            "elapsed_sec": self._elapsed + time.monotonic() - self._started,
        }
        tensors: dict[str, Tensor] = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for name in ("exp_avg", "exp_avg_sq"):
            views = named_views(self.net, self.groups, getattr(self.shared, name))
            tensors |= {f"{name}.{parameter}": view for parameter, view in views.items()}
        tensors["adam_steps"] = self.shared.adam_steps
        save_checkpoint(self.run.folder.checkpoints, step, {k: t.cpu() for k, t in tensors.items()}, state)
        self.run.save_student(self.method.export(self.net), step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.net.load_state_dict(checkpoint.prefixed("net."))
        for name in ("exp_avg", "exp_avg_sq"):
            views = named_views(self.net, self.groups, getattr(self.shared, name))
            for parameter, saved in checkpoint.prefixed(f"{name}.").items():
                views[parameter].copy_(saved)
        self.shared.adam_steps.copy_(checkpoint.tensors["adam_steps"])
        self.shared.steps[0] = checkpoint.state["global_step"]
        self.shared.updates[0] = checkpoint.state["updates"]
        self.shared.dropped[0] = checkpoint.state["dropped"]
        self.session = checkpoint.state["session"] + 1
        self._elapsed = checkpoint.state["elapsed_sec"]

    def _note(self, number: int) -> None:
        self._signal = number

    def _log_row(self) -> None:
        window, step, now = self._window, self.shared.global_step, time.monotonic()
        if step == window.step:
            return
        self._rate = (step - window.step) / (now - window.since)
        report = window.report
        values = {name: value / report.updates for name, value in report.sums.items()}
        if report.episodes:
            values["charts/episodic_return"] = sum(e.score for e in report.episodes) / len(report.episodes)
        values |= {
            "charts/episodes": float(len(report.episodes)),
            "charts/learning_rate": self.run.config.shape.lr * (1.0 - self.progress),
            "charts/updates": float(self.shared.updates.sum()),
            "charts/dropped_updates": float(self.shared.dropped.sum()),
            "time/steps_per_sec": self._rate,
            "time/elapsed_sec": self._elapsed + now - self._started,
        }
        self._metrics.log(step, values | self._method_metrics())
        self._window = _Window(step)

    def _method_metrics(self) -> dict[str, float]:
        self.method.before_rollout(self.net, self.progress)
        return self.method.metrics(self.net)

    def _status(self) -> Status:
        return Status(
            step=self.shared.global_step,
            steps=self.run.config.steps,
            steps_per_sec=self._rate,
            recent_return=sum(self._recent) / len(self._recent) if self._recent else None,
            student_return=self._student_return,
            metrics=self._method_metrics(),
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
