"""`kfrl sweep`: run many trainings from one file, on this machine or a cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Gt, Le

from kfrl.config import checked
from kfrl.errors import UserError, missing_file
from kfrl.training.signals import noting_signals

if TYPE_CHECKING:
    from rich.table import Table

    from kfrl.sweep.folder import SweepFolder, SweepPlan, TrialState

DOMAINS = {"games": "agents.trials", "images": "kfrl.supervised.trials"}
MACHINES = (64, 256, 1024)
"""Numbers of cores for which --dry-run computes the time, besides this machine's."""
SHARED_BYTES = 50 * 2**20
"""Shared memory of a run: its model, its gradients, its teachers."""
LINE_SECONDS = 10.0
STOP_SECONDS = 7.0
"""Seconds that the sweep's processes have to end after a signal."""


@dataclass(frozen=True)
class SweepFlags:
    """Run many trainings from one file: games x methods x teachers x seeds, grids and draws.

    Each trial writes an ordinary run folder. The same command continues an unfinished sweep.
    """

    spec: tyro.conf.Positional[Path]
    """The sweep's file (docs/sweeps.md; configs/tables holds those of the papers)."""
    storage: Path | None = None
    """The sweep's folder; on a cluster all nodes need access to it. Default: runs/sweeps/<the file's name>."""
    scale: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    """Factor on each budget and on the number of seeds."""
    address: str | None = None
    """A Ray cluster to join, HOST:PORT or auto (docs/cluster.md). Default: Ray on this machine only."""
    dry_run: bool = False
    """List the runs, train one run of each kind for a few seconds, and print the estimated time of all."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = checked(tyro.cli(SweepFlags, prog="kfrl sweep", args=list(argv)))
    if not flags.spec.is_file():
        raise missing_file(flags.spec)
    from kfrl.sweep.estimate import in_fresh_process, resolve_all
    from kfrl.sweep.folder import SweepFolder

    plan = _plan(flags)
    check_machine(plan, flags.address)
    folder = SweepFolder((flags.storage or _default_folder(flags)).expanduser().absolute())
    if flags.dry_run:
        in_fresh_process(resolve_all, plan)
        print_estimate(plan)
        return 0
    check_ray(flags.address)
    folder.check(plan)
    folder.prepare(in_fresh_process(resolve_all, replace(plan, fixed=folder.fixed)))
    return run_sweep(folder, flags.address)


def _plan(flags: SweepFlags) -> SweepPlan:
    from kfrl.sweep.folder import SweepPlan
    from kfrl.sweep.space import load_spec, make_trials

    spec = load_spec(flags.spec)
    domain = importlib.import_module(DOMAINS[spec.runs]).DOMAIN
    try:
        trials = make_trials(spec, domain, flags.scale, flags.spec.parent)
    except UserError as error:
        raise UserError(f"{flags.spec}: {error}") from None
    return SweepPlan(DOMAINS[spec.runs], tuple(trials), flags.scale, spec.early_stopping, spec.paper)


def _default_folder(flags: SweepFlags) -> Path:
    scaled = "" if flags.scale == 1.0 else f"-x{flags.scale:g}"
    return Path("runs", "sweeps", f"{flags.spec.stem}{scaled}")


# --- checks before anything starts ----------------------------------------------------------------------------


def check_machine(plan: SweepPlan, address: str | None) -> None:
    """Check that this machine has enough cores and shared memory for the runs.

    Raises:
        UserError: it does not.
    """
    from kfrl.machine import cores, shared_memory

    if address is not None:
        return
    most = max(plan.trials, key=lambda trial: trial.cpu)
    if most.cpu > cores():
        raise UserError(
            f"A run of {most.group!r} needs {most.cpu:g} CPUs, one for each of its processes, and this machine has "
            f"{cores()}. Use fewer workers (workers: {cores()}), reserve fewer CPUs (resources: {{cpu: {cores()}}}), "
            "or join a cluster with --address."
        )
    from kfrl.sweep.estimate import OBJECT_STORE

    room = shared_memory(OBJECT_STORE + SHARED_BYTES * min(len(plan.trials), int(cores() // most.cpu)))
    if room.problem:
        raise UserError(room.warning)


def check_ray(address: str | None) -> None:
    """Check that Ray is installed and that the cluster, if one is given, answers.

    Raises:
        UserError: Ray is missing, or the cluster does not answer.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise UserError("kfrl sweep needs Ray Tune, which is not installed: pip install 'kfrl[sweep]'")
    if address is None or address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise UserError(f"--address expects HOST:PORT or auto, got {address!r}.")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise UserError(
            f"No cluster answers at {address} ({error}). Start it first: ray start --head --port {port}"
        ) from None


# --- running ----------------------------------------------------------------------------------------------------


def run_sweep(folder: SweepFolder, address: str | None) -> int:
    """Run the unfinished trials of a prepared sweep and show their progress; returns the exit code."""
    from kfrl.sweep.descendants import adopt_orphans, end_descendants
    from kfrl.sweep.folder import FAILED, FINISHED

    plan = folder.read()
    stopped: list[int] = []
    with folder.lock() as lock, noting_signals(stopped.append):
        adopt_orphans()
        driver = _start_driver(folder, address, lock.fileno())
        try:
            _watch(driver, folder, plan, stopped)
        finally:
            end_descendants()
        driver.wait()
    states = folder.states(plan)
    folder.write_states(plan, states)
    _conclude(folder, plan, states)
    counts = Counter(state.state for state in states.values())
    if stopped:
        return 128 + stopped[0]
    if driver.returncode not in (0, 1) or counts[FAILED] + counts[FINISHED] == 0:
        print(f"kfrl: Ray ended early; its output is in {folder.log}.", file=sys.stderr)
        return 1
    return 1 if counts[FAILED] else 0


def _start_driver(folder: SweepFolder, address: str | None, lock: int) -> subprocess.Popen[bytes]:
    from kfrl.machine import cores

    code = "import sys; from kfrl.sweep.driver import main; main(sys.argv[1:])"
    arguments = [str(folder.path), str(os.getpid()), str(cores()), *([address] if address else [])]
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # Ctrl-C goes to this process only, which then stops the driver
            pass_fds=[lock],
        )


ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""Environment of the driver and of Ray: no telemetry, no logs and signal handlers of Ray's own, no idle workers."""


def _watch(driver: subprocess.Popen[bytes], folder: SweepFolder, plan: SweepPlan, stopped: Sequence[int]) -> None:
    """Show the trials' states until the driver ends, or until `STOP_SECONDS` after a signal."""
    screen, told = _Screen(plan), 0.0
    with screen:
        while driver.poll() is None:
            screen.show(folder.states_noted(plan))
            if stopped and not told:
                told = time.monotonic()
                screen.say("Stopping: runs write their checkpoints.")
                driver.send_signal(signal.SIGTERM)
            if told and time.monotonic() - told > STOP_SECONDS:
                return
            time.sleep(0.2 if told else 0.5)


class _Screen:
    """The display of a sweep: a live table in a terminal, a line every `LINE_SECONDS` elsewhere."""

    def __init__(self, plan: SweepPlan) -> None:
        from rich.live import Live

        from kfrl.cli.console import table_console

        self._plan, self._console = plan, table_console(markup=False)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)
        self._began, self._printed = time.monotonic(), 0.0
        self._first: float | None = None

    def __enter__(self) -> _Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def show(self, states: Mapping[str, TrialState]) -> None:
        share = _share(states)
        if self._first is None and states:
            self._first = share
        eta = self._eta(share)
        if self._console.is_terminal:
            self._live.update(progress_table(self._plan, states, eta))
        elif time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            self.say(progress_line(self._plan, states, eta))

    def _eta(self, share: float) -> float | None:
        gained = share - (self._first or 0.0)
        if gained <= 0:
            return None
        return (time.monotonic() - self._began) * (1.0 - share) / gained


def _share(states: Mapping[str, TrialState]) -> float:
    """The share of the sweep that is done; a pruned or failed trial counts as done."""
    from kfrl.sweep.folder import FAILED, PRUNED

    parts = [1.0 if state.state in (FAILED, PRUNED) else state.share for state in states.values()]
    return sum(parts) / len(parts)


def _best(plan: SweepPlan, states: Mapping[str, TrialState]) -> tuple[str, float] | None:
    """The run with the highest objective; None if the runs have several subjects, whose objectives do not compare."""
    from kfrl.sweep.folder import domain_of

    subject = domain_of(plan).subject
    if len({trial.settings.get(subject) for trial in plan.trials}) > 1:
        return None
    known = [(name, state.objective) for name, state in states.items() if state.objective is not None]
    return max(known, key=lambda pair: pair[1], default=None)


def progress_line(plan: SweepPlan, states: Mapping[str, TrialState], eta: float | None) -> str:
    """The progress of a sweep in one line."""
    from kfrl.cli.display import duration
    from kfrl.sweep.folder import RUNNING, STATES, domain_of

    counts = Counter(state.state for state in states.values())
    parts = [f"{counts[name]} {name}" for name in STATES if counts[name]]
    rate = sum(state.rate for state in states.values() if state.state == RUNNING)
    parts += [f"{100 * _share(states):.1f} %", f"{rate:,.0f} {domain_of(plan).unit}/s", f"ETA {duration(eta)}"]
    best = _best(plan, states)
    if best is not None:
        parts.append(f"best {best[1]:,.4g} ({best[0]})")
    return " · ".join(parts)


def progress_table(plan: SweepPlan, states: Mapping[str, TrialState], eta: float | None, most: int = 20) -> Table:
    """The progress of a sweep as a table of at most `most` trials, the running ones first."""
    from rich.table import Table

    from kfrl.sweep.folder import FAILED, FINISHED, PRUNED, RUNNING, STATES

    order = [RUNNING, FAILED, FINISHED, PRUNED, *STATES]
    shown = sorted(states, key=lambda name: order.index(states[name].state))[:most]
    table = Table(
        "trial", "state", "done", "of the run", "rate", "objective", "score", title=progress_line(plan, states, eta)
    )
    for name in shown:
        state = states[name]
        table.add_row(
            name,
            state.state,
            f"{state.done:,.0f}",
            f"{100 * state.share:.0f} %",
            f"{state.rate:,.0f}" if state.state == RUNNING else "",
            _number(state.objective),
            _number(state.score),
        )
    if len(states) > most:
        table.add_row(f"and {len(states) - most} more", *[""] * 6)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"


def _conclude(folder: SweepFolder, plan: SweepPlan, states: Mapping[str, TrialState]) -> None:
    """Print the results and the next commands."""
    from kfrl.cli.console import table_console
    from kfrl.sweep.agreement import agreement_lines
    from kfrl.sweep.folder import FAILED, FINISHED, PRUNED, domain_of

    console, domain = table_console(markup=False), domain_of(plan)
    counts = Counter(state.state for state in states.values())
    console.print(progress_table(plan, states, None, most=40))
    for name, state in states.items():
        if state.state == FAILED:
            console.print(f"{name} failed: {state.error}", soft_wrap=True)
    done = counts[FINISHED] + counts[PRUNED]
    if done < len(states):
        console.print(
            f"{len(states) - done} of {len(states)} runs are not finished. The same command continues them.",
            soft_wrap=True,
        )
    if plan.scale != 1.0:
        console.print(
            f"Scale {plan.scale:g}: every run had {100 * plan.scale:g} % of the {domain.budget} in the file, and every "
            f"arm {100 * plan.scale:g} % of its seeds. These are not the results of the whole file.",
            style="bold",
            soft_wrap=True,
        )
    for line in agreement_lines(folder, plan, states):
        console.print(line, soft_wrap=True)
    for line in plan.paper:
        console.print(f"Paper: {line}", soft_wrap=True)
    console.print(f"All runs, a line each: {folder.table}", soft_wrap=True)
    console.print(f"Compare them: {domain.compare_command} {folder.path}", soft_wrap=True)
    console.print(f"Curves: tensorboard --logdir {folder.path}", soft_wrap=True)


# --- --dry-run --------------------------------------------------------------------------------------------------


def print_estimate(plan: SweepPlan) -> None:
    """Train one run of each kind for a few seconds, and print the estimated time and memory of all runs."""
    from rich.table import Table

    from kfrl.cli.console import table_console
    from kfrl.machine import cores
    from kfrl.sweep.estimate import in_fresh_process, measure_all, need
    from kfrl.sweep.folder import domain_of

    console, domain = table_console(markup=False), domain_of(plan)
    total = sum(float(trial.settings[domain.budget]) for trial in plan.trials)
    console.print(f"{len(plan.trials)} runs, {total:,.0f} {domain.budget} in all. Measuring one of each kind ...")
    kinds: list[Any] = in_fresh_process(measure_all, plan)
    table = Table("runs of", "count", domain.budget, "processes", "rate here", "time of one here", "memory of one")
    for kind in kinds:
        note = " (measured without its teachers, which this sweep trains)" if kind.untaught else ""
        table.add_row(
            kind.group + note,
            str(kind.runs),
            f"{kind.budget:,.0f}",
            f"{kind.cpu:g}",
            f"{kind.rate:,.0f} {domain.unit}/s",
            _time(kind.seconds / 3600),
            f"{kind.memory_mb:,.0f} MB",
        )
    console.print(table)
    whole = Table("cores", "runs at once", "time", "memory")
    for count in (cores(), *(number for number in MACHINES if number > cores())):
        needed = need(kinds, cores(), count)
        name = f"{count} (this machine)" if count == cores() else f"{count} like these"
        whole.add_row(name, str(needed.at_once), _time(needed.hours), f"{needed.memory_gb:,.1f} GB")
    console.print(whole)
    console.print("The final games add to the time, and Ray adds 0.5 GB to the memory.")


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.0f} days"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:,.1f} min"
