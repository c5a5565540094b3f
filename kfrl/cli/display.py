"""The display of a run: a live panel in a terminal, plain lines elsewhere, and a log file in both cases."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from kfrl.flow import KnowledgeFlow

LINE_SECONDS = 10.0
P_STUDENT = "flow/p_student/"


@dataclass(frozen=True)
class View:
    """The parts of a run's status that are shown."""

    done: float
    total: float
    facts: Sequence[tuple[str, str]]
    """Names and values; the panel has a line for each."""
    p: Mapping[str, float] = field(default_factory=dict)
    """p of the student by layer."""


class Terminal(Console):
    """Standard output that may be closed before the run ends, because a pipe or a terminal was closed."""

    def on_broken_pipe(self) -> None:
        """Raise the error to the caller of print; rich's default would end the process."""
        raise BrokenPipeError


class RunDisplay:
    """Shows each new status; every printed line also goes to the run's log."""

    def __init__(self, console: Console, log: IO[str], view: Callable[[Any], View]) -> None:
        """Show on `console`, and write lines to `log`; `view` selects the parts of a status that are shown."""
        self.console = console
        self.title = ""
        """Title of the panel."""
        self._log = Console(file=log, width=140)
        self._view = view
        self._live: Live | None = None
        self._printed = 0.0

    def say(self, text: RenderableType, style: str = "") -> None:
        """Print a line, or anything that rich can render. Square brackets are printed as they are, not as markup."""
        for console in (self._log, self.console):
            with self._going_on_alone(sys.stdout):
                console.print(text, style=style, soft_wrap=isinstance(text, str), highlight=False, markup=False)

    @contextmanager
    def _going_on_alone(self, stream: TextIO) -> Iterator[None]:
        """A context in which a closed `stream` is not an error: it becomes /dev/null, and the log says so."""
        try:
            yield
        except OSError as error:
            if error.errno not in (None, errno.EPIPE, errno.EIO):
                raise
            self._live = None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            self._log.print(f"{stream.name} was closed; the run continues, and writes to this file only.")

    def fail(self, text: str) -> None:
        """Print an error to standard error."""
        self._log.print(text, soft_wrap=True, highlight=False, markup=False)
        with self._going_on_alone(sys.stderr):
            Terminal(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"kfrl: {text}")

    def update(self, status: Any) -> None:
        """Show the run's status."""
        if self.console.is_terminal:
            with self._going_on_alone(sys.stdout):
                if self._live is None:
                    self._live = Live(console=self.console, refresh_per_second=4, transient=True)
                    self._live.start()
                self._live.update(panel(self.title, self._view(status)))
        elif time.monotonic() - self._printed > LINE_SECONDS and (view := self._view(status)).done:
            self._printed = time.monotonic()
            self.say(plain_line(view))

    def close(self) -> None:
        """Remove the live panel."""
        live, self._live = self._live, None
        if live is not None:
            with self._going_on_alone(sys.stdout):
                live.stop()


@contextmanager
def open_display(log: Path, view: Callable[[Any], View]) -> Iterator[RunDisplay]:
    """A display on standard output that also appends to `log`."""
    with log.open("a", encoding="utf-8") as file:
        display = RunDisplay(Terminal(file=sys.stdout), file, view)
        try:
            yield display
        finally:
            display.close()


def p_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """P of the student by layer, from a run's metrics."""
    return {name.removeprefix(P_STUDENT): p for name, p in metrics.items() if name.startswith(P_STUDENT)}


def duration(seconds: float | None) -> str:
    """A duration as H:MM:SS, with the days before it if there are any."""
    return "..." if seconds is None else str(timedelta(seconds=int(max(0.0, seconds))))


def link_table(net: KnowledgeFlow) -> Table:
    """A table of all links with their shapes, transforms and parameters."""
    table = Table(title="Links")
    for name in ("student", "shape", "teacher", "layer", "shape", "Q", "weights", "MB"):
        table.add_column(name, overflow="fold")
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


def panel(title: str, view: View) -> Panel:
    """The live panel for a terminal."""
    facts = Table.grid(padding=(0, 2))
    for name, value in view.facts:
        facts.add_row(Text(name, style="dim"), value)
    bar = Table.grid(expand=True)  # in a grid, because a bar alone prints no line break
    bar.add_row(ProgressBar(total=view.total, completed=min(view.done, view.total)))
    return Panel(Group(bar, facts, *_weights(view.p)), title=title, title_align="left")


def _weights(p: Mapping[str, float]) -> list[RenderableType]:
    if not p:
        return []
    table = Table.grid(padding=(0, 2))
    for layer, weight in p.items():
        table.add_row(
            Text(f"p {layer}", style="dim"), ProgressBar(total=1.0, completed=weight, width=30), f"{weight:.3f}"
        )
    return [table]


def plain_line(view: View) -> str:
    """The content of the panel as one plain line."""
    parts = [f"{name} {value}" for name, value in view.facts]
    if view.p:
        parts.append("p " + " ".join(f"{value:.2f}" for value in view.p.values()))
    return " · ".join(parts)
