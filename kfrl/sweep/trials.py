"""The folder of a sweep: its plan, the folders of its runs, and one CSV of how they stand."""

from __future__ import annotations

import csv
import fcntl
import functools
import importlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from kfrl.config import validated
from kfrl.errors import UserError
from kfrl.runs.atomic import write_text
from kfrl.runs.folder import RunFolder
from kfrl.sweep.domain import Domain
from kfrl.sweep.space import EarlyStopping, Trial, flat, teacher_names, with_teachers

TABLE = "trials.csv"
_HIDDEN = ".sweep"
WAITING, RUNNING, FINISHED, PRUNED, FAILED, STOPPED = "waiting", "running", "finished", "pruned", "failed", "stopped"
STATES = (RUNNING, WAITING, FINISHED, PRUNED, FAILED, STOPPED)


@dataclass(frozen=True)
class Plan:
    """What a sweep does; fixed when it is first started."""

    domain: str
    """The module whose `DOMAIN` its runs are of."""
    trials: tuple[Trial, ...]
    scale: float = 1.0
    early_stopping: EarlyStopping | None = None
    paper: tuple[str, ...] = ()

    def trial(self, name: str) -> Trial:
        """The trial of that name."""
        return next(trial for trial in self.trials if trial.name == name)


@dataclass(frozen=True)
class State:
    """How a trial stands."""

    state: str = WAITING
    done: float = 0.0
    """Steps or epochs."""
    share: float = 0.0
    """Of the run."""
    rate: float = 0.0
    objective: float | None = None
    score: float | None = None
    """The final one."""
    error: str = ""


@dataclass(frozen=True)
class SweepFolder:
    """The files of a sweep, by name."""

    path: Path

    @property
    def hidden(self) -> Path:
        """What a user has no need to see."""
        return self.path / _HIDDEN

    @property
    def plan_file(self) -> Path:
        """The plan."""
        return self.hidden / "plan.json"

    @property
    def table(self) -> Path:
        """The one CSV: a row for each trial."""
        return self.path / TABLE

    @property
    def log(self) -> Path:
        """What Ray printed."""
        return self.hidden / "driver.log"

    def run(self, trial: Trial) -> RunFolder:
        """An ordinary run's folder."""
        return RunFolder(self.path / trial.name)

    def error_file(self, trial: Trial) -> Path:
        """Why a trial failed when it last did."""
        return self.hidden / f"{trial.name}.error.txt"

    @property
    def exists(self) -> bool:
        """Whether this is the folder of a sweep."""
        return self.plan_file.is_file()

    def read(self) -> Plan:
        """The plan of an existing sweep.

        Raises:
            UserError: none there, or damaged.
        """
        if not self.exists:
            raise UserError(f"{self.path} is not the folder of a sweep.")
        try:
            return validated(json.loads(self.plan_file.read_text()), Plan, str(self.plan_file))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.plan_file} is damaged: {error}") from None

    def check(self, plan: Plan) -> None:
        """Refuse a folder that holds something else: a sweep that is there may gain trials, not change them.

        Raises:
            UserError: it does.
        """
        if self.exists:
            self._check_same(plan)
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is there and is not the folder of a sweep. Give another --storage.")

    def prepare(self, plan: Plan) -> None:
        """Write the plan.

        Raises:
            UserError: the folder cannot be written, or as `check`.
        """
        self.check(plan)
        try:
            self.hidden.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The storage folder {self.path} cannot be made: {error.strerror}. Give another --storage."
            ) from None
        if not os.access(self.hidden, os.W_OK):
            raise UserError(f"The storage folder {self.path} cannot be written. Give another --storage.")
        write_text(self.plan_file, json.dumps(asdict(plan), indent=1, default=str) + "\n")

    def _check_same(self, plan: Plan) -> None:
        there = self.read()
        new = {trial.name: _plain(trial.settings) for trial in plan.trials}
        for trial in there.trials:
            if trial.name not in new:
                what = f"it has a run {trial.name}, this one has not"
            elif _plain(trial.settings) != new[trial.name]:
                old, now = flat(trial.settings), flat(new[trial.name])
                what = f"run {trial.name} differs in " + ", ".join(
                    key for key in sorted({*old, *now}) if _plain(old.get(key)) != _plain(now.get(key))
                )
            else:
                continue
            raise UserError(f"{self.path} holds another sweep: {what}. Give another --storage.")
        if there.scale != plan.scale:
            raise UserError(
                f"{self.path} holds a sweep of scale {there.scale:g}, this is {plan.scale:g}. Give another --storage."
            )

    def lock(self) -> IO[str]:
        """Keep others from running this sweep as long as the file that is returned is open, here or in a child.

        Raises:
            UserError: it is being run.
        """
        file = (self.hidden / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UserError(f"The sweep in {self.path} is being run by another kfrl.") from None
        return file

    # --- how trials stand -------------------------------------------------------------------------------------

    def states_noted(self, plan: Plan) -> dict[str, State]:
        """Every trial by name, as the CSV has it: at no cost, while a sweep runs."""
        noted = {row["trial"]: row for row in self._rows()}
        return {trial.name: _state_in(noted.get(trial.name, {})) for trial in plan.trials}

    def states(self, plan: Plan) -> dict[str, State]:
        """Every trial by name: what its folder says, or else the CSV."""
        noted = {row["trial"]: row for row in self._rows()}
        return {trial.name: self._state(trial, noted.get(trial.name, {}), plan) for trial in plan.trials}

    def _state(self, trial: Trial, noted: Mapping[str, str], plan: Plan) -> State:
        folder = self.run(trial)
        known = _state_in(noted)
        if folder.evaluation.is_file():
            return self.finished(known, trial, domain_of(plan))
        if known.state in (PRUNED, FAILED):
            return known
        return replace(known, state=STOPPED if folder.config.is_file() else WAITING, rate=0.0)

    def finished(self, known: State, trial: Trial, domain: Domain) -> State:
        """The state of a trial whose eval.json is there."""
        try:
            score, objective = domain.scores(json.loads(self.run(trial).evaluation.read_text()))
        except (OSError, ValueError, KeyError) as error:
            return replace(known, state=FAILED, error=f"{self.run(trial).evaluation} is damaged: {error!r}")
        done = known.done or float(trial.settings.get(domain.budget, 0))
        return replace(known, state=FINISHED, done=done, share=1.0, score=score, objective=objective, error="")

    def write_states(self, plan: Plan, states: Mapping[str, State]) -> None:
        """Write the CSV."""
        write_text(self.table, csv_of(plan, states, self.path))

    def _rows(self) -> list[dict[str, str]]:
        if not self.table.is_file():
            return []
        return list(csv.DictReader(self.table.read_text().splitlines()))

    def settings(self, trial: Trial, plan: Plan) -> dict[str, Any]:
        """What a trial is trained with: its folder, and the students of the sweep's own teachers."""
        domain = domain_of(plan)
        references = {one.teacher: domain.teacher(self.run(one).path) for one in plan.trials if one.teacher}
        return {**with_teachers(trial.settings, references), "run_dir": str(self.run(trial).path)}


def _state_in(row: Mapping[str, str]) -> State:
    """What a row of the CSV says."""

    def number(name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    return State(
        state=row.get("state") or WAITING,
        done=number("done") or 0.0,
        share=number("share") or 0.0,
        rate=number("rate") or 0.0,
        objective=number("objective"),
        score=number("score"),
        error=row.get("error") or "",
    )


def member_of_sweep(path: Path) -> str | None:
    """What the arm of a run is called that belongs to a sweep: it differs from the others in its draws too.

    Args:
        path: A run's folder.

    Returns:
        None for a run of no sweep.

    Raises:
        UserError: the run is no result: a teacher of the sweep, or pruned.
    """
    folder = SweepFolder(path.absolute().parent)
    if not folder.exists:
        return None
    plan = _read_once(folder)
    trial = next((trial for trial in plan.trials if trial.name == path.name), None)
    if trial is None:
        return None
    if trial.teacher:
        raise UserError("a teacher that the sweep trained for its other runs")
    if _states_once(folder)[trial.name].state == PRUNED:
        raise UserError("pruned by early stopping, so no result")
    scaled = "" if plan.scale == 1.0 else f" at scale {plan.scale:g}"
    return (folder.path.name if trial.group == "run" else trial.group) + scaled


@functools.cache
def _read_once(folder: SweepFolder) -> Plan:
    return folder.read()


@functools.cache
def _states_once(folder: SweepFolder) -> dict[str, State]:
    return folder.states_noted(_read_once(folder))


def domain_of(plan: Plan) -> Domain:
    """The kind of run that a plan is of."""
    domain: Domain = importlib.import_module(plan.domain).DOMAIN
    return domain


def csv_of(plan: Plan, states: Mapping[str, State], path: Path) -> str:
    """A row for each trial: how it stands, what it is, and what was drawn for it."""
    domain = domain_of(plan)
    drawn = list(dict.fromkeys(key for trial in plan.trials for key in trial.drawn))
    columns = [
        *("trial", "state", "group", domain.subject, "seed", *drawn),
        *("done", "share", "rate", "objective", "score", "scale", "folder", "error"),
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for trial in plan.trials:
        state = asdict(states[trial.name])
        state["share"], state["rate"] = round(state["share"], 4), round(state["rate"], 1)
        writer.writerow(
            {
                **state,
                "trial": trial.name,
                "group": trial.group,
                domain.subject: trial.settings.get(domain.subject),
                "seed": trial.settings.get("seed"),
                **trial.drawn,
                "scale": plan.scale,
                "folder": path / trial.name,
            }
        )
    return text.getvalue()


def levels(plan: Plan) -> Iterator[list[Trial]]:
    """Trials that can run side by side: teachers before those who need them."""
    for level in sorted({trial.level for trial in plan.trials}):
        yield [trial for trial in plan.trials if trial.level == level]


def untaught(trial: Trial, plan: Plan, states: Mapping[str, State]) -> list[str]:
    """The sweep's own teachers that a trial waits for and that did not finish."""
    wanted = teacher_names(trial.settings)
    return [one.teacher for one in plan.trials if one.teacher in wanted and states[one.name].state != FINISHED]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True, default=str))
