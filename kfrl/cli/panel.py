"""What a training run shows: one live panel in a terminal, plain lines elsewhere, and a log file in both cases."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agents.config import FAST_ENVS, TrainConfig, cores
from agents.runs import Run
from agents.training import Status
from envs.games import Game
from kfrl.checkpoint import Checkpoint
from kfrl.flow import KnowledgeFlow

LINE_SECONDS = 10.0


class TrainDisplay:
    """Shows statuses as they come; every line also goes to the run's log."""

    def __init__(self, console: Console, log: IO[str]) -> None:
        """Show on `console`, and write lines to `log`."""
        self.console = console
        self._log = Console(file=log, width=140)
        self._live: Live | None = None
        self._title = ""
        self._printed = 0.0

    def say(self, text: RenderableType) -> None:
        """Print a line, or anything rich can render."""
        self.console.print(text, soft_wrap=isinstance(text, str), highlight=False)
        self._log.print(text, soft_wrap=isinstance(text, str), highlight=False)

    def fail(self, text: str) -> None:
        """Print what went wrong to standard error."""
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"kfrl: {text}")
        self._log.print(text, soft_wrap=True, highlight=False, markup=False)

    def introduce(self, run: Run, checkpoint: Checkpoint | None) -> None:
        """Say what is about to run: rules, sizes, teachers and links."""
        config, protocol = run.config, run.protocol
        names = ", ".join(
            [_teacher_line(run, index) for index in range(len(run.teachers))]
            + [f"source {Game(source.game).title}" for source in run.spec.sources]
        )
        self._title = f"{config.game} · {config.label}" + (f" · {names}" if names else "")
        self.say(f"[bold]{self._title}[/]")
        self.say(
            f"protocol {protocol.name} ({protocol.fingerprint}): sticky {protocol.sticky:g}, frame skip "
            f"{protocol.frame_skip}, {len(run.spec.actions)} actions, a lost life "
            f"{'ends' if protocol.episodic_life else 'does not end'} the learner's episode"
        )
        for line in (*_engine_lines(config), *_phase_lines(run)):
            self.say(line)
        method = run.method()
        net = method.build(run.spec, run.teachers)
        method.begin(net, 0, run.phases[0].games[0], rank=0)
        trained = sum(p.numel() for group in method.parameter_groups(net) for p in group.parameters)
        if len(run.phases) == 1:
            deployed = sum(p.numel() for p in method.export(net).parameters())
            self.say(f"{trained:,} parameters train, {deployed:,} are deployed")
        else:
            self.say(f"{trained:,} parameters train in phase 1")
        if isinstance(net, KnowledgeFlow):
            self.say(link_table(net))
        if checkpoint is not None:
            state = checkpoint.state
            phase = f" of phase {state['phase'] + 1}" if len(run.phases) > 1 else ""
            step = state.get("phase_step", state["global_step"])
            self.say(f"Going on from step {step:,}{phase} ({checkpoint.path.name}).")
        self.say(f"Writing to {run.folder.path}")

    def update(self, status: Status) -> None:
        """Show where the run stands."""
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(_panel(self._title, status))
        elif status.step and time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            self.say(_line(status))

    def close(self) -> None:
        """Take the live panel down."""
        if self._live is not None:
            self._live.stop()
            self._live = None


@contextmanager
def open_display(log: Path) -> Iterator[TrainDisplay]:
    """A display on standard output that also appends to `log`."""
    with log.open("a") as file:
        display = TrainDisplay(Console(file=sys.stdout), file)
        try:
            yield display
        finally:
            display.close()


def link_table(net: KnowledgeFlow) -> Table:
    """Every link with its shapes, transform and parameters."""
    table = Table("student", "shape", "teacher", "layer", "shape", "Q", "parameters", "MB", title="Links")
    for row in net.link_table():
        table.add_row(
            row.link.student,
            _shape(row.student_shape),
            row.link.teacher,
            row.link.layer,
            _shape(row.teacher_shape),
            row.transform,
            f"{row.parameters:,}",
            f"{4e-6 * row.parameters:,.1f}",
        )
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


def _engine_lines(config: TrainConfig) -> Iterator[str]:
    shape = config.shape
    if config.algo == "a3c":
        who = f"{shape.workers} worker{'s' * (shape.workers > 1)} x {shape.envs_per_worker} games on {cores()} cores"
    else:
        who = f"{config.algo} with {shape.envs_per_worker} games in step, learning on {config.device}"
    yield f"{config.steps:,} agent steps, {who}, t_max {shape.t_max}, learning rate {shape.lr:.3g}"
    if shape.workers > cores():
        yield (
            f"[yellow]{shape.workers} workers with one thread each share {cores()} cores: "
            f"{shape.workers / cores():.0f} wait for every one that runs. That is the published shape; --preset fast "
            f"({cores()} workers x {FAST_ENVS} games) makes more steps a second here.[/]"
        )


def _phase_lines(run: Run) -> Iterator[str]:
    """What is learned when, where that is not one game from start to end."""
    if not run.spec.sources:
        return
    for index, phase in enumerate(run.phases):
        games = ", ".join(f"{Game(task.game).title} ({len(task.actions)} actions)" for task in phase.games)
        yield f"phase {index + 1}: {games}, {phase.steps:,} steps"


def _teacher_line(run: Run, index: int) -> str:
    teacher = run.teachers[index]
    score = teacher.card.mean_score
    return f"teacher {teacher.name}" + ("" if score is None else f" ({score:.0f} points)")


def _panel(title: str, status: Status) -> Panel:
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(status):
        facts.add_row(Text(name, style="dim"), value)
    bar = Table.grid(expand=True)  # a bare bar does not end its line
    bar.add_row(ProgressBar(total=status.steps, completed=min(status.step, status.steps)))
    return Panel(Group(bar, facts, *_weights(status)), title=title, title_align="left")


def _facts(status: Status) -> list[tuple[str, str]]:
    eta = "..." if status.eta_sec is None else str(timedelta(seconds=int(max(0.0, status.eta_sec))))
    facts = [("phase", status.phase)] if status.phase else []
    facts += [
        ("steps", f"{status.step:,} of {status.steps:,}"),
        ("rate", f"{status.steps_per_sec:,.0f} steps/s"),
        ("ETA", eta),
        ("raw return", _score(status.recent_return)),
    ]
    facts += [(f"in {Game(game).title}", _score(score)) for game, score in status.source_returns.items()]
    if status.student_return is not None:
        facts.append(("student alone", _score(status.student_return)))
    if status.dropped:
        facts.append(("dropped updates", f"{status.dropped:,}"))
    return facts


def _weights(status: Status) -> list[RenderableType]:
    layers = {name.rsplit("/", 1)[1]: p for name, p in status.metrics.items() if name.startswith("flow/p_student/")}
    if not layers:
        return []
    table = Table.grid(padding=(0, 2))
    for layer, p in layers.items():
        table.add_row(Text(f"p {layer}", style="dim"), ProgressBar(total=1.0, completed=p, width=30), f"{p:.3f}")
    return [table]


def _line(status: Status) -> str:
    parts = [f"{name} {value}" for name, value in _facts(status)]
    p = [value for name, value in status.metrics.items() if name.startswith("flow/p_student/")]
    if p:
        parts.append("p " + " ".join(f"{value:.2f}" for value in p))
    return " · ".join(parts)


def _score(value: float | None) -> str:
    return "..." if value is None else f"{value:,.1f}"
