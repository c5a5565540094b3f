"""Base class of the engines: logging, evaluation during training, checkpoints, phases and stops."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from agents.engines.shared import SharedModel, bind, named_views
from agents.engines.update import Report
from agents.evaluation.background import Evaluator, Snapshot
from agents.methods.base import NetSpec, Review
from agents.observations import observe, steps_for
from agents.run import Run
from envs.atari import AtariEnvs
from envs.games import Game
from kfrl.machine import cores
from kfrl.nets import arch_of
from kfrl.runs import history
from kfrl.runs.checkpoint import Checkpoint, save_checkpoint
from kfrl.runs.loggers import Loggers
from kfrl.runs.metrics import MetricsWriter
from kfrl.seeding import CURVE, PLAY, stream
from kfrl.training import trainer as training
from kfrl.training.signals import noting_signals
from kfrl.training.status import Status
from kfrl.training.trainer import Display, Outcome

ROWS = 500
"""Number of rows of a run's metrics.csv."""
PACE = 10.0
"""Fewest seconds over which the rate is measured, because delayed reports can arrive all at once."""
RECENT = 100
"""Number of games in the running mean of the raw return."""


@dataclass(frozen=True)
class GameStatus(Status):
    """The status of a run on a game."""

    recent_return: float | None
    """Mean raw score of the last `RECENT` training games."""
    source_returns: Mapping[str, float]
    """`recent_return` of each source game."""
    dropped: int
    """Number of updates that were dropped because their gradient was not finite."""


@dataclass
class _Window:
    """The reports since the last row of metrics."""

    step: int
    report: Report = field(default_factory=Report)
    scores: dict[str, list[float]] = field(default_factory=dict)
    """Scores of the games that ended, by ROM."""


class Trainer(training.Trainer[Run]):
    """Base class of the engines, which train a run on a game, phase by phase."""

    first_squares = 0.0
    """The optimiser's mean of a parameter's squared gradients before its first update."""

    def __init__(self, run: Run, display: Display, checkpoint: Checkpoint | None = None) -> None:
        """Build the model, from a checkpoint if there is one."""
        super().__init__(run, display)
        built = run.take_built()
        self.method, self.net = built.method, built.net
        self.session = 0
        self._recent = _scores_by_game()
        self._reports: list[dict[str, float]] = []
        self._student_return: float | None = None
        self._own_steps_before = 0
        self._rate = 0.0
        self._evaluator: Evaluator | None = None
        self._reviewing: Iterator[Review | None] | None = None
        self._loggers = Loggers(run.config.log_to, run.folder.path, asdict(run.config))
        if checkpoint is None:
            with _all_cores():
                for line in self.method.prepare(self.net, self._play):
                    self.display.say(line)
            self._enter(0)
        else:
            with checkpoint.understood():
                self._restore(checkpoint)
        self._open_logs(resumed=checkpoint is not None)

    def _play(self, count: int, policy: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Play the run's own game for observations; see `Play`."""
        seed = stream(self.run.config.seed, PLAY + self._own_steps_before)
        seen = observe(self.run.rules(self.run.spec), count, policy, seed)
        self._own_steps_before += steps_for(count)
        return seen

    def _enter(self, index: int) -> None:
        """Start phase `index`, or the next phase with steps, with a new optimiser state."""
        self.phases = self.method.fitted_phases(self.net, self.run.phases)
        index = next(at for at in range(index, len(self.phases)) if self.phases[at].steps)
        self.phase_index, self.phase = index, self.phases[index]
        self._reviewing = None
        self.recent_of_phase = _scores_by_game()
        """The scores of the phase's latest games, by ROM."""
        self.place()
        self.method.begin(self.net, index, self.phase.games[0], rank=0)
        self.groups = self.method.parameter_groups(self.net)
        self.optimiser_state: dict[str, Tensor] = {}
        self.shared = SharedModel.create(self.groups, self.run.config.shape.workers)
        bind(self.groups, self.shared.parameters)

    def _open_logs(self, *, resumed: bool) -> None:
        """Open the metrics. A phase of source games has its own, because the run's count steps of its own game."""
        folder, step, steps = self.run.folder, self._logged_step, self._logged_steps
        directory = folder.path if self.on_target else folder.source(self.phase_index)
        if resumed:
            history.forget_after(folder.history, step)
        self._metrics = MetricsWriter(
            directory,
            step if resumed or (self.on_target and self._own_steps_before) else None,
            self._loggers if self.on_target else None,
        )
        self._window, self._pace = _Window(step), (time.monotonic(), step)
        self._row = _Every(steps, ROWS, step)
        self._curve = _Every(steps, self.run.config.curve_points if self.on_target else 0, step - 1)

    @abstractmethod
    def place(self) -> None:
        """Move the net and the teachers to the device or into shared memory."""

    @abstractmethod
    def learn(self) -> None:
        """Update until the phase's steps are done or `stopping`; call `take` with each report, and `tick` often."""

    @property
    def on_target(self) -> bool:
        """Whether the phase learns the run's own game, perhaps with other games."""
        return not self.phase.source

    def counts(self, task: NetSpec) -> bool:
        """Whether steps in a game count for the phase's budget."""
        return not self.on_target or task.game == self.run.spec.game

    @property
    def step(self) -> int:
        """Agent steps in the run's own game, including those of `Play`."""
        return self._own_steps_before + (self.shared.global_step if self.on_target else 0)

    @property
    def _logged_step(self) -> int:
        """The step for the metrics: steps in the run's own game, or in a phase of source games."""
        return self.step if self.on_target else self.shared.global_step

    @property
    def _logged_steps(self) -> int:
        return self.run.config.steps if self.on_target else self.phase.steps

    @property
    def source_steps(self) -> int:
        """Agent steps in the source games, over all phases."""
        return int(self.shared.other_steps.sum()) + (0 if self.on_target else self.shared.global_step)

    @property
    def progress(self) -> float:
        """The share of the phase's steps that is done."""
        return min(1.0, self.shared.global_step / self.phase.steps)

    @property
    def lr(self) -> float:
        """The present learning rate."""
        return self.run.config.shape.lr * self.phase.lr_share(self.progress)

    def train(self) -> Outcome:
        """Train phase by phase until the steps are done, a signal arrives or a learner fails; then save."""
        config = self.run.config
        with noting_signals(self.stop):
            if config.curve_points:
                seed = stream(config.seed, CURVE)
                self._evaluator = Evaluator(self.run.protocol, config.curve_episodes, seed)
            try:
                self.learn()
                while self.phase_index < len(self.phases) - 1 and not self.stopping:
                    if self._next_phase():
                        self.learn()
                self._finish_curve()
            finally:
                if self._evaluator is not None:
                    self._evaluator.close()
        self._close_logs()
        self._loggers.close()
        self.method.schedule(self.net, self.progress)
        self.save()
        return Outcome(self.net, self.step, self.source_steps, self.signal, self.failure, self.resumable)

    def _next_phase(self) -> bool:
        """Start the next phase; False if the run is `stopping` before that."""
        self._close_logs()
        before = self._own_steps_before
        with _all_cores():
            for line in self.method.end_phase(self.net, self._play):
                self.display.say(line)
                if self.stopping:
                    # A resumed run plays these steps again.
                    self._own_steps_before = before
                    return False
        own, other = self.step, self.source_steps
        self._enter(self.phase_index + 1)
        self._own_steps_before, self.shared.other_steps[0] = own, other
        self._open_logs(resumed=False)
        self.save()
        self.display.say(f"Phase {self.phase_title}")
        return True

    @property
    def phase_title(self) -> str:
        """The number and name of the phase; empty if the run has only one."""
        if len(self.phases) == 1:
            return ""
        games = ", ".join(Game(task.game).title for task in self.phase.games)
        return f"{self.phase_index + 1} of {len(self.phases)}, {self.phase.title or games}"

    def take(self, report: Report) -> None:
        """Add a learner's report to the statistics."""
        window = self._window.report
        window.updates += report.updates
        for name, value in report.sums.items():
            window.sums[name] = window.sums.get(name, 0.0) + value
        scores = [episode.score for episode in report.episodes]
        self._window.scores.setdefault(report.game, []).extend(scores)
        self.recent_of_phase[report.game].extend(scores)
        if not self.phase.guided:
            self._recent[report.game].extend(scores)
        self._note_training()

    @property
    def training_report(self) -> list[dict[str, float]]:
        """The mean raw score of the last 100 training games, at each passed entry of `report_frames` and now.

        Each report has `frames` of the run's own game, the number of `games` and their `mean`. Only games of
        the present phase count, and none of a `guided` one. Empty if no such game has ended.
        """
        return [*self._reports, *self._report_at(self._frames)] if self._counted else []

    @property
    def _counted(self) -> Sequence[float]:
        return () if self.phase.guided else self.recent_of_phase[self.run.spec.game]

    @property
    def _frames(self) -> int:
        return self.step * self.run.protocol.frame_skip

    def _report_at(self, frames: int) -> list[dict[str, float]]:
        recent = self._counted
        mean = sum(recent) / max(1, len(recent))
        known = self._reports and self._reports[-1]["frames"] == frames
        return [] if known else [{"frames": frames, "games": len(recent), "mean": mean}]

    def _note_training(self) -> None:
        """Add a report for each newly passed entry of `report_frames`."""
        noted = {report["frames"] for report in self._reports}
        for frames in self.run.config.report_frames:
            passed = self._guided_frames < frames <= self._frames
            if self.on_target and self._counted and passed and frames not in noted:
                self._reports += self._report_at(frames)

    @property
    def _guided_frames(self) -> float:
        """The frames up to which another net acted; those have no report."""
        if self.phase.guided:
            return math.inf
        before = [phase for phase in self.phases[: self.phase_index] if phase.steps]
        guided = bool(before) and before[-1].guided
        return self._own_steps_before * self.run.protocol.frame_skip if guided else 0

    def tick(self) -> None:
        """Log, evaluate, write a checkpoint and update the display, each if it is due."""
        step = self._logged_step
        self._measure_rate(step, PACE)
        if self._row.due(step):
            self._log_row()
        self._evaluate_along(step)
        self.save_if_due(self.run.config.checkpoint_every)
        self.display.update(self._status())

    def review(self) -> bool:
        """Do the next step of the method's review of the net, if a review is due; True if it is not finished."""
        if self._reviewing is None:
            self._reviewing = self.method.review(self.net, self.shared.global_step, self._games)
        if self._reviewing is None:
            return False
        found = next(self._reviewing)
        if found is None:
            return True
        self._forget_statistics(found.fresh)
        next(self._reviewing, None)
        self._reviewing = None
        for line in found.lines:
            self.display.say(line)
        history.add(self.run.folder.history, self._logged_step, found.history)
        return False

    def _games(self, count: int) -> AtariEnvs:
        return AtariEnvs(self.run.rules(self.run.spec), count, num_threads=min(cores(), count))

    def _forget_statistics(self, parameters: Iterable[nn.Parameter]) -> None:
        wanted = {id(parameter) for parameter in parameters}
        names = [name for name, parameter in self.net.named_parameters() if id(parameter) in wanted]
        for statistics, start in ((self.shared.exp_avg, 0.0), (self.shared.exp_avg_sq, self.first_squares)):
            views = named_views(self.net, self.groups, statistics)
            for name in names:
                if name in views:
                    views[name].fill_(start)

    def _finish_curve(self) -> None:
        """Start the evaluation of the last student too, and wait for all evaluations."""
        while self._evaluator is not None and not self.stopping:
            self._evaluate_along(self._logged_step)
            if not self._evaluator.busy:
                return
            time.sleep(0.05)

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

    def student(self) -> nn.Module:
        """The present student alone. Building it does not change the run's random generator."""
        with torch.random.fork_rng(devices=[]):
            return self.method.export(self.net)

    def _snapshot(self, step: int) -> Snapshot:
        student = self.student()
        weights = {
            name: tensor.detach().cpu().contiguous().numpy().copy() for name, tensor in student.state_dict().items()
        }
        return Snapshot(step, arch_of(student), len(self.run.spec.actions), weights)

    def save(self) -> None:
        """Write a checkpoint and, once the run's own game is learned, the present student."""
        state = {
            "phase": self.phase_index,
            "phase_step": self.shared.global_step,
            "global_step": self.step,
            "source_steps": self.source_steps,
            "updates": int(self.shared.updates.sum()),
            "dropped": int(self.shared.dropped.sum()),
            "session": self.session,
            "teacher_sha256": list(self.run.config.teacher_sha256),
            "answers_sha256": list(self.run.config.answers_sha256),
            "elapsed_sec": self.elapsed_sec,
            "recent": {game: list(scores) for game, scores in self._recent.items()},
            "recent_of_phase": {game: list(scores) for game, scores in self.recent_of_phase.items()},
            "reports": self._reports,
        }
        tensors: dict[str, Tensor] = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for name in ("exp_avg", "exp_avg_sq"):
            views = named_views(self.net, self.groups, getattr(self.shared, name))
            tensors |= {f"{name}.{parameter}": view for parameter, view in views.items()}
        tensors["adam_steps"] = self.shared.adam_steps
        tensors |= {f"optimiser.{name}": tensor for name, tensor in self.optimiser_state.items()}
        played = self.step + self.source_steps
        save_checkpoint(self.run.folder.checkpoints, played, {k: t.cpu() for k, t in tensors.items()}, state)
        if self.step:
            self.run.save_student(self.student(), self.step, caveat=self.method.caveat(self.net))

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.run.check_inputs(checkpoint)
        checkpoint.load_net(self.net)
        # A checkpoint of a version without phases belongs to the only phase.
        self._enter(state.get("phase", 0))
        for name in ("exp_avg", "exp_avg_sq"):
            views = named_views(self.net, self.groups, getattr(self.shared, name))
            for parameter, saved in checkpoint.prefixed(f"{name}.").items():
                views[parameter].copy_(saved)
        self.shared.adam_steps.copy_(checkpoint.tensors["adam_steps"])
        self.optimiser_state |= checkpoint.prefixed("optimiser.")
        self.shared.steps[0] = state.get("phase_step", state["global_step"])
        self._own_steps_before = state["global_step"] - (self.shared.global_step if self.on_target else 0)
        self.shared.other_steps[0] = state.get("source_steps", 0) - self.source_steps
        self.shared.updates[0] = state["updates"]
        self.shared.dropped[0] = state["dropped"]
        self.session = state["session"] + 1
        self._elapsed = state["elapsed_sec"]
        self._reports = state.get("reports", [])
        for name, recent in (("recent", self._recent), ("recent_of_phase", self.recent_of_phase)):
            for game, scores in state.get(name, {}).items():
                recent[game].extend(scores)
        self.method.recall(self.recent_of_phase[self.method.task.game])

    def _close_logs(self) -> None:
        self._log_row()
        self._metrics.close()

    def _log_row(self) -> None:
        window, step = self._window, self._logged_step
        if step == window.step:
            return
        if not self._rate:
            self._measure_rate(step, 0.0)
        report = window.report
        values = {name: value / report.updates for name, value in report.sums.items()}
        for task in self.phase.games:
            values |= self._scores(task.game, window.scores.get(task.game, []))
        values |= {
            "charts/learning_rate": self.lr,
            "charts/updates": float(self.shared.updates.sum()),
            "charts/dropped_updates": float(self.shared.dropped.sum()),
            "time/steps_per_sec": self._rate,
            "time/elapsed_sec": self.elapsed_sec,
        }
        self._metrics.log(step, values | self._method_metrics())
        self._window = _Window(step)

    def _measure_rate(self, step: int, seconds: float) -> None:
        """Measure the rate since the last time, if that is `seconds` ago and steps were made."""
        now = time.monotonic()
        since, earlier = self._pace
        if step == earlier and not self._rate:
            # The workers are still starting: that time is no part of the rate.
            self._pace = now, step
        elif now - since > seconds and step > earlier:
            self._rate, self._pace = (step - earlier) / (now - since), (now, step)

    def _scores(self, game: str, scores: Sequence[float]) -> dict[str, float]:
        """Metrics of the games that ended; those of a source game have its name."""
        suffix = "" if game == self.run.spec.game else f"/{game}"
        name = "guided_return" if self.phase.guided else "episodic_return"
        mean = {f"charts/{name}{suffix}": sum(scores) / len(scores)} if scores else {}
        return mean | {f"charts/episodes{suffix}": float(len(scores))}

    def _method_metrics(self) -> dict[str, float]:
        self.method.schedule(self.net, self.progress)
        return self.method.metrics(self.net)

    def _status(self) -> GameStatus:
        recent = {game: sum(scores) / len(scores) for game, scores in self._recent.items() if scores}
        left = self._logged_steps - self._logged_step
        return GameStatus(
            done=self._logged_step,
            total=self._logged_steps,
            rate=self._rate,
            eta_sec=left / self._rate if self._rate else None,
            student=self._student_return,
            student_at=None,
            part=self.phase_title,
            metrics=self._method_metrics(),
            recent_return=recent.pop(self.run.spec.game, None),
            source_returns=recent,
            dropped=int(self.shared.dropped.sum()),
        )


def _scores_by_game() -> dict[str, deque[float]]:
    return defaultdict(lambda: deque(maxlen=RECENT))


@contextmanager
def _all_cores() -> Iterator[None]:
    """A context in which PyTorch uses all cores, because no worker is active."""
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Every:
    """A schedule that is due at the end of each of `count` equal parts of a phase."""

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
