"""Kill processes of a sweep at random times; count processes left after ten seconds, and trials lost or run twice.

    python benchmarks/sweep_survival.py --output survival.csv

Each kill is a SIGKILL of the command (`kfrl sweep`), of its driver (which runs Ray), of Ray's raylet, of a trial
(Tune's actor) or of a worker (a process that plays games for a trial), in turn. A sweep that has ended is started
again, with more trials if almost all are finished.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from kfrl.sweep.descendants import alive, descendants

KINDS = ("command", "driver", "raylet", "trial", "worker")
MARK = "KFRL_SURVIVAL"
LATER = 10.0
"""Seconds between a kill and the count."""


@dataclass(frozen=True)
class Options:
    """Kill parts of a sweep of small trials on Breakout, two at a time."""

    output: Path
    """The CSV to write, a row for each kill."""
    folder: Path
    """The sweep's folder, which must not exist."""
    kills: int = 20
    trials: int = 12
    """Initial number of trials."""
    steps: int = 4000
    """Agent steps of a trial: 1 worker x 4 games."""
    seed: int = 1
    """Seed of the times of the kills."""
    longest: float = 20.0
    """Most seconds between the start of the killed process, or the last kill, and the kill."""


class Sweep:
    """`kfrl sweep`, started again when it has ended; a variable in the environment marks its processes."""

    def __init__(self, folder: Path, trials: int, steps: int) -> None:
        """Prepare the sweep; it is not started."""
        self.folder, self.trials, self.steps, self.mark = folder, trials, steps, uuid.uuid4().hex
        self.spec, self.log = folder.parent / "survival.yaml", folder.parent / "sweep.log"
        self.process: subprocess.Popen[bytes] | None = None

    def ensure(self) -> int:
        """Start it unless it runs; returns its process id."""
        if self.process is None or self.process.poll() is not None:
            if len(finished(self.folder)) > self.trials - 4:
                self.trials += 6
            self.start()
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start or continue the sweep."""
        self.spec.parent.mkdir(parents=True, exist_ok=True)
        self.spec.write_text(
            f"settings: {{game: Breakout, workers: 1, envs_per_worker: 4, steps: {self.steps}, curve_points: 0, "
            f"eval_episodes: 1, checkpoint_every: 5, seed: {{range: {self.trials}}}}}\n"
        )
        command = [sys.executable, "-m", "kfrl.cli.main", "sweep", str(self.spec), "--storage", str(self.folder)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, MARK: self.mark}, stdout=log, stderr=log, start_new_session=True
            )

    def marked(self) -> set[int]:
        """All living processes that this sweep has started, independent of their present parent."""
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (entry / "environ").read_bytes() and alive(int(entry.name)):
                    found.add(int(entry.name))
        return found

    def find(self, kind: str) -> list[int]:
        """The processes of a kind."""
        if kind == "command":
            return [self.ensure()]
        return sorted(pid for pid in self.marked() if _is(kind, pid))


def _is(kind: str, pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return False
    if kind == "driver":
        return "kfrl.sweep.driver" in line
    if kind == "raylet":
        return name == "raylet"
    if kind == "trial":
        return line.startswith("ray::") and "Trainable" in line
    # A worker is forked from multiprocessing's fork server and has its command line; only the server has children.
    return "forkserver" in line and not descendants(pid)


def finished(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Finished trial -> time and content of its scores."""
    return {path.parent.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*/eval.json")}


def kills(options: Options, sweep: Sweep) -> Iterator[dict[str, object]]:
    """Make the kills; yields a row for each."""
    moments, known = random.Random(options.seed), finished(sweep.folder)
    for number in range(options.kills):
        kind = KINDS[number % len(KINDS)]
        wait = moments.uniform(0.0, options.longest)
        sweep.ensure()
        _await(partial(_running, sweep, kind))
        time.sleep(wait)
        victim = moments.choice(_await(partial(_running, sweep, kind)))
        whole = kind in ("command", "driver", "raylet")
        doomed = sweep.marked() if whole else {victim, *descendants(victim)}
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        time.sleep(LATER)
        # No process of a whole sweep may be left, including those started since the kill; but a sweep whose raylet
        # died before the driver connected starts another raylet.
        left = sweep.marked() if whole else {pid for pid in doomed if alive(pid)}
        if kind == "raylet" and sweep.process is not None and sweep.process.poll() is None:
            left -= {sweep.process.pid, *descendants(sweep.process.pid)}
        now = finished(sweep.folder)
        changed = [name for name, content in known.items() if now.get(name) != content]
        known |= now
        row = {
            "kill": number + 1,
            "of": kind,
            "after_sec": round(wait, 1),
            "processes": len(doomed),
            "left_after_10_sec": len(left),
            "finished": len(now),
            "lost_or_run_twice": len(changed),
        }
        print(row, flush=True)
        yield row


def _running(sweep: Sweep, kind: str) -> list[int]:
    sweep.ensure()
    return sweep.find(kind)


def _await(condition: Callable[[], Any], seconds: float = 600.0) -> Any:
    """Wait until the condition is true; returns its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"A process to kill did not start within {seconds:g} s: see the sweep's log.")
        time.sleep(0.2)
    return found


def main(options: Options) -> None:
    """Kill and count, then let the sweep finish and count again."""
    sweep = Sweep(options.folder, options.trials, options.steps)
    rows = []
    try:
        for row in kills(options, sweep):
            rows.append(row)
            with options.output.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
                writer.writerows(rows)
        known = finished(options.folder)
        for _ in range(3):
            if sweep.process is None or sweep.process.poll() is not None:
                sweep.start()
            if sweep.process is not None and sweep.process.wait() == 0:
                break
        now = finished(options.folder)
    finally:
        for pid in sweep.marked():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    changed = [name for name, content in known.items() if now.get(name) != content]

    def total(column: str) -> int:
        return sum(int(str(row[column])) for row in rows)

    print(
        f"{len(rows)} kills; processes left after {LATER:g} s: {total('left_after_10_sec')}; "
        f"finished trials lost or run twice: {total('lost_or_run_twice') + len(changed)}; "
        f"finished at the end: {len(now)} of {sweep.trials}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
