"""What a sweep would take: one run of each kind is trained for some seconds, and the rest is arithmetic."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfrl.sweep.processes import descendants
from kfrl.sweep.space import Trial, teacher_names
from kfrl.sweep.trials import Plan, domain_of
from kfrl.training.status import Status

OBJECT_STORE = 80 * 2**20
"""Bytes of shared memory for Ray: trials only report numbers."""
SECONDS = 5.0
"""Length of a measurement, after `_WARM_UP`."""
_WARM_UP = 2.0


@dataclass(frozen=True)
class Kind:
    """Runs of one cost: they differ in subject, seed and draws alone."""

    group: str
    runs: int
    budget: float
    """Steps or epochs of one."""
    rate: float
    """Steps or images a second, here."""
    seconds: float
    """Of one run, here, if no other runs beside it; without its final games."""
    memory_mb: float
    cpu: float
    untaught: bool
    """Measured without its teachers, which are trained by the sweep itself."""

    def core_seconds(self, cores: int) -> float:
        """Of one run; what it takes on a core of its own for each process."""
        return self.seconds * min(self.cpu, cores)


@dataclass(frozen=True)
class Need:
    """What a sweep takes on a machine."""

    cores: int
    at_once: int
    hours: float
    memory_gb: float


def in_fresh_process(function: Any, *arguments: Any) -> Any:
    """Call a function in a process of its own, which loads PyTorch so that this one need not.

    Raises:
        UserError: what the function raises.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def resolve_all(plan: Plan) -> None:
    """Look up what one run of each group and subject names, in this process.

    Raises:
        UserError: something is not there.
    """
    domain = domain_of(plan)
    seen = set()
    for trial in plan.trials:
        key = (trial.group, str(trial.settings.get(domain.subject)))
        if key not in seen and not teacher_names(trial.settings):
            seen.add(key)
            domain.resolve({**trial.settings, "run_dir": f"/nowhere/{trial.name}"})


def measure_all(plan: Plan, seconds: float = SECONDS) -> list[Kind]:
    """Train a run of each group for some seconds, in this process: the first that needs no teacher of it."""
    groups: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        groups.setdefault(trial.group, []).append(trial)
    return [_measure(plan, trials, seconds) for trials in groups.values()]


def _measure(plan: Plan, trials: Sequence[Trial], seconds: float) -> Kind:
    domain = domain_of(plan)
    trial = next((one for one in trials if not teacher_names(one.settings)), trials[0])
    settings = dict(trial.settings)
    untaught = bool(teacher_names(settings))
    if untaught:
        settings = {**settings, "teachers": "", "method": None}
    with tempfile.TemporaryDirectory(prefix="kfrl-sweep-") as folder:
        session = domain.start({**settings, "run_dir": str(Path(folder) / "run")})
        clock = _Stopwatch(session, seconds)
        session.prepare(clock)
        began = time.monotonic()
        session.trainer.train()
        share_per_sec, rate = clock.result(time.monotonic() - began)
    return Kind(
        group=trial.group,
        runs=len(trials),
        budget=float(trial.settings[domain.budget]),
        rate=rate,
        seconds=1 / share_per_sec,
        memory_mb=clock.memory_mb,
        cpu=trial.cpu,
        untaught=untaught,
    )


class _Stopwatch:
    """A display that shows nothing: it times a run from its first steps on, and then stops it."""

    def __init__(self, session: Any, seconds: float) -> None:
        self._session, self._seconds = session, seconds
        self._first: float | None = None
        self._start: tuple[float, Status] | None = None
        self._end: tuple[float, Status] | None = None
        self.memory_mb = 0.0

    def update(self, status: Status) -> None:
        now = time.monotonic()
        if not status.done:
            return
        if self._first is None:
            self._first = now
        if self._start is None:
            if now - self._first >= _WARM_UP:
                self._start = now, status
            return
        self._end = now, status
        self.memory_mb = max(self.memory_mb, memory_mb([os.getpid(), *descendants()]))
        if now - self._start[0] > self._seconds:
            self._session.trainer.stop(signal.SIGTERM)

    def say(self, text: Any) -> None:
        """Nothing to say."""

    def result(self, whole: float) -> tuple[float, float]:
        """Share of the run a second, and the rate; of a run that ends within the warm-up, over its `whole` length."""
        if self._start is None or self._end is None or self._end[1].share <= self._start[1].share:
            return 1 / whole, self._end[1].rate if self._end else 0.0
        (begun, first), (ended, last) = self._start, self._end
        seconds = ended - begun
        rate = (last.done - first.done) / seconds
        return (last.share - first.share) / seconds, rate if last.rate == 0 else last.rate


def memory_mb(pids: Sequence[int]) -> float:
    """Proportional set size of processes, in MB; memory that they share is counted once."""
    total = 0
    for pid in pids:
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total * 1024 / 1e6


def need(kinds: Sequence[Kind], here: int, cores: int) -> Need:
    """What all runs take on a machine of `cores` cores that are as fast as one of the `here` ones.

    A run has its own processes' cores and no more; none waits for another's end but for a free place.
    """
    at_once = max(1, min(sum(kind.runs for kind in kinds), int(cores // max(kind.cpu for kind in kinds))))
    one = {kind.group: kind.core_seconds(here) / min(kind.cpu, cores) for kind in kinds}
    seconds = max(max(one.values()), sum(kind.runs * one[kind.group] for kind in kinds) / at_once)
    return Need(cores, at_once, seconds / 3600, at_once * max(kind.memory_mb for kind in kinds) / 1000)
