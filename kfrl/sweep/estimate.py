"""Estimate of a sweep's time and memory, from a few seconds of training of one run of each kind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kfrl.sweep.descendants import descendants
from kfrl.sweep.folder import SweepPlan, domain_of
from kfrl.sweep.space import Trial, named_teachers, teacher_names, with_fixed_teachers
from kfrl.training.status import Status

OBJECT_STORE = 80 * 2**20
"""Bytes of shared memory for Ray. Trials report only numbers, so little is enough."""
SECONDS = 5.0
"""Seconds of a measurement, after `_WARM_UP`."""
_WARM_UP = 2.0


@dataclass(frozen=True)
class Kind:
    """A group of runs with the same cost: they differ only in subject, seed and draws."""

    group: str
    runs: int
    budget: float
    """Steps or epochs of one run."""
    rate: float
    """Steps or images a second on this machine."""
    seconds: float
    """Seconds of one run on this machine when no other run is active, without the final games."""
    memory_mb: float
    cpu: float
    untaught: bool
    """Whether the run was measured without its teachers, because the sweep still has to train them."""

    def core_seconds(self, cores: int) -> float:
        """CPU seconds of one run, if each of its processes has a core."""
        return self.seconds * min(self.cpu, cores)


@dataclass(frozen=True)
class Need:
    """The resources that a sweep needs on a machine."""

    at_once: int
    hours: float
    memory_gb: float


def in_fresh_process(function: Any, *arguments: Any) -> Any:
    """Call a function in a new process, so that this process does not load PyTorch.

    Raises:
        UserError: the function raised it.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def resolve_all(plan: SweepPlan) -> SweepPlan:
    """Look up everything that the settings name, for one run of each group and subject, in this process.

    Returns:
        The plan, with every named teacher fixed. Those that it has already stay as they are.

    Raises:
        UserError: a named thing does not exist.
    """
    domain = domain_of(plan)
    names = {name: None for trial in plan.trials for name in named_teachers(trial.settings)}
    found = {name: tuple(domain.find_teachers(name)) for name in names if name not in plan.fixed}
    plan = replace(plan, fixed={**plan.fixed, **found})
    seen = set()
    for trial in plan.trials:
        key = (trial.group, str(trial.settings.get(domain.subject)))
        if key not in seen and not teacher_names(trial.settings):
            seen.add(key)
            settings = with_fixed_teachers(trial.settings, plan.fixed)
            domain.resolve({**settings, "run_dir": f"/nowhere/{trial.name}"})
    return plan


def measure_all(plan: SweepPlan, seconds: float = SECONDS) -> list[Kind]:
    """Train one run of each group for some seconds, in this process: if possible one without teachers of the sweep."""
    groups: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        groups.setdefault(trial.group, []).append(trial)
    return [_measure(plan, trials, seconds) for trials in groups.values()]


def _measure(plan: SweepPlan, trials: Sequence[Trial], seconds: float) -> Kind:
    domain = domain_of(plan)
    trial = next((one for one in trials if not teacher_names(one.settings)), trials[0])
    settings = dict(trial.settings)
    untaught = bool(teacher_names(settings))
    if untaught:
        settings = {**settings, "teachers": "", "method": None}
    with tempfile.TemporaryDirectory(prefix="kfrl-sweep-") as folder:
        session = domain.start({**settings, "run_dir": str(Path(folder) / "run")})
        clock = _ProgressTimer(session, seconds)
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


class _ProgressTimer:
    """A display that prints nothing: it measures a run's progress a second and its memory, then stops the run.

    The stopwatch of `agents.benchmark` measures other things: steps a second, and the memory of each process.
    """

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
            if now - self._first >= _WARM_UP and status.done >= self._session.trainer.steady[0]:
                self._start = now, status
            return
        self._end = now, status
        self.memory_mb = max(self.memory_mb, memory_mb([os.getpid(), *descendants()]))
        whole = status.done - self._start[1].done >= self._session.trainer.steady[1]
        if whole and now - self._start[0] > self._seconds:
            self._session.trainer.stop(signal.SIGTERM)

    def say(self, text: Any) -> None:
        """Print nothing."""

    def result(self, whole: float) -> tuple[float, float]:
        """Share of the run done a second, and the rate.

        For a run that ends within the warm-up, the share is taken over its `whole` seconds.
        """
        if self._start is None or self._end is None or self._end[1].share <= self._start[1].share:
            return 1 / whole, self._end[1].rate if self._end else 0.0
        (begun, first), (ended, last) = self._start, self._end
        seconds = ended - begun
        rate = (last.done - first.done) / seconds
        return (last.share - first.share) / seconds, rate if last.rate == 0 else last.rate


def memory_mb(pids: Sequence[int]) -> float:
    """Proportional set size of the processes, in MB, which counts shared memory once."""
    total = 0
    for pid in pids:
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total * 1024 / 1e6


def need(kinds: Sequence[Kind], here: int, cores: int) -> Need:
    """Time and memory of all runs on a machine with `cores` cores, each as fast as one of this machine's `here` cores.

    Assumes that a run uses one core for each of its processes, and starts as soon as enough cores are free.
    """
    at_once = max(1, min(sum(kind.runs for kind in kinds), int(cores // max(kind.cpu for kind in kinds))))
    one = {kind.group: kind.core_seconds(here) / min(kind.cpu, cores) for kind in kinds}
    seconds = max(max(one.values()), sum(kind.runs * one[kind.group] for kind in kinds) / at_once)
    return Need(at_once, seconds / 3600, at_once * max(kind.memory_mb for kind in kinds) / 1000)
