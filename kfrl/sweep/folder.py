"""The folder of a sweep: its plan, the folders of its runs, and one CSV with the state of each run."""

from __future__ import annotations

import csv
import fcntl
import functools
import importlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from kfrl.config import validated
from kfrl.errors import UserError
from kfrl.runs.atomic import write_text
from kfrl.runs.folder import RunFolder
from kfrl.sweep.domain import Domain
from kfrl.sweep.space import EarlyStopping, FixedTeacher, Trial, flat, teacher_names, with_fixed_teachers, with_teachers

TABLE = "trials.csv"
_HIDDEN = ".sweep"
WAITING, RUNNING, FINISHED, PRUNED, FAILED, STOPPED = "waiting", "running", "finished", "pruned", "failed", "stopped"
STATES = (RUNNING, WAITING, FINISHED, PRUNED, FAILED, STOPPED)


@dataclass(frozen=True)
class SweepPlan:
    """The trials of a sweep and its options; fixed when the sweep is first started."""

    domain: str
    """The module that holds the `DOMAIN` of the runs, e.g. agents.trials."""
    trials: tuple[Trial, ...]
    scale: float = 1.0
    early_stopping: EarlyStopping | None = None
    paper: tuple[str, ...] = ()
    fixed: dict[str, tuple[FixedTeacher, ...]] = field(default_factory=dict)
    """Teachers by their names in the settings. All trials have these, whichever file a name would stand for later."""

    def trial(self, name: str) -> Trial:
        """The trial of that name."""
        return next(trial for trial in self.trials if trial.name == name)


@dataclass(frozen=True)
class TrialState:
    """The state of a trial: its progress, its scores, its error."""

    state: str = WAITING
    done: float = 0.0
    """Steps or epochs done."""
    share: float = 0.0
    """Share of the run that is done, 0 to 1."""
    rate: float = 0.0
    objective: float | None = None
    score: float | None = None
    """The final score."""
    error: str = ""


@dataclass(frozen=True)
class SweepFolder:
    """The files of a sweep, by name."""

    path: Path

    @property
    def hidden(self) -> Path:
        """The folder of files that only kfrl and Ray read."""
        return self.path / _HIDDEN

    @property
    def plan_file(self) -> Path:
        """The file of the plan."""
        return self.hidden / "plan.json"

    @property
    def table(self) -> Path:
        """The one CSV: a row for each trial."""
        return self.path / TABLE

    @property
    def log(self) -> Path:
        """The output of Ray."""
        return self.hidden / "driver.log"

    def run(self, trial: Trial) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.path / trial.name)

    def error_file(self, trial: Trial) -> Path:
        """The file with the error of a trial's last failure."""
        return self.hidden / f"{trial.name}.error.txt"

    @property
    def exists(self) -> bool:
        """Whether this is the folder of a sweep."""
        return self.plan_file.is_file()

    def read(self) -> SweepPlan:
        """The plan of an existing sweep.

        Raises:
            UserError: there is no plan, or it is damaged.
        """
        if not self.exists:
            raise UserError(f"{self.path} is not the folder of a sweep.")
        try:
            return validated(json.loads(self.plan_file.read_text()), SweepPlan, str(self.plan_file))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.plan_file} is damaged: {error}") from None

    @property
    def fixed(self) -> dict[str, tuple[FixedTeacher, ...]]:
        """The teachers that are fixed in an existing sweep; none before it is prepared."""
        return self.read().fixed if self.exists else {}

    def check(self, plan: SweepPlan) -> None:
        """Refuse a folder that holds something else. An existing sweep may gain trials; its trials may not change.

        Raises:
            UserError: the folder holds other files, or another sweep.
        """
        if self.exists:
            self._check_same(plan)
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"{self.path} exists and is not the folder of a sweep. Give another --storage.")

    def prepare(self, plan: SweepPlan) -> None:
        """Write the plan.

        Raises:
            UserError: the folder cannot be written, or `check` refuses it.
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

    def _check_same(self, plan: SweepPlan) -> None:
        there = self.read()
        new = {trial.name: _plain(trial.settings) for trial in plan.trials}
        for trial in there.trials:
            if trial.name not in new:
                what = f"it has a run {trial.name}, which this sweep does not have"
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
        """Lock this sweep against other processes, until the returned file is closed here and in every child process.

        Raises:
            UserError: another process runs the sweep.
        """
        file = (self.hidden / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UserError(f"The sweep in {self.path} is being run by another kfrl.") from None
        return file

    # --- states of trials -------------------------------------------------------------------------------------

    def states_noted(self, plan: SweepPlan) -> dict[str, TrialState]:
        """The state of every trial, by its name, from the CSV alone: cheap enough to call while the sweep runs."""
        noted = {row["trial"]: row for row in self._rows()}
        return {trial.name: _state_in(noted.get(trial.name, {})) for trial in plan.trials}

    def states(self, plan: SweepPlan) -> dict[str, TrialState]:
        """The state of every trial, by its name: from its folder if it is finished, else from the CSV."""
        noted = {row["trial"]: row for row in self._rows()}
        return {trial.name: self._state(trial, noted.get(trial.name, {}), plan) for trial in plan.trials}

    def _state(self, trial: Trial, noted: Mapping[str, str], plan: SweepPlan) -> TrialState:
        folder = self.run(trial)
        known = _state_in(noted)
        if folder.evaluation.is_file():
            return self.finished(known, trial, domain_of(plan))
        if known.state in (PRUNED, FAILED):
            return known
        return replace(known, state=STOPPED if folder.config.is_file() else WAITING, rate=0.0)

    def finished(self, known: TrialState, trial: Trial, domain: Domain) -> TrialState:
        """The state of a trial whose eval.json is there."""
        try:
            score, objective = domain.scores(json.loads(self.run(trial).evaluation.read_text()))
        except (OSError, ValueError, KeyError) as error:
            return replace(known, state=FAILED, error=f"{self.run(trial).evaluation} is damaged: {error!r}")
        done = known.done or float(trial.settings.get(domain.budget, 0))
        return replace(known, state=FINISHED, done=done, share=1.0, score=score, objective=objective, error="")

    def write_states(self, plan: SweepPlan, states: Mapping[str, TrialState]) -> None:
        """Write the CSV."""
        write_text(self.table, csv_of(plan, states, self.path))

    def _rows(self) -> list[dict[str, str]]:
        if not self.table.is_file():
            return []
        return list(csv.DictReader(self.table.read_text().splitlines()))

    def settings(self, trial: Trial, plan: SweepPlan) -> dict[str, Any]:
        """The settings that a trial is trained with: the run folder added, and each teacher as an exact reference."""
        domain = domain_of(plan)
        references = {one.teacher: domain.teacher(self.run(one).path) for one in plan.trials if one.teacher}
        settings = with_fixed_teachers(trial.settings, plan.fixed)
        return {**with_teachers(settings, references), "run_dir": str(self.run(trial).path)}


def _state_in(row: Mapping[str, str]) -> TrialState:
    """The state that a row of the CSV holds."""

    def number(name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    return TrialState(
        state=row.get("state") or WAITING,
        done=number("done") or 0.0,
        share=number("share") or 0.0,
        rate=number("rate") or 0.0,
        objective=number("objective"),
        score=number("score"),
        error=row.get("error") or "",
    )


def member_of_sweep(path: Path) -> str | None:
    """The arm's name of a run that belongs to a sweep. The runs of an arm may differ in drawn settings.

    Args:
        path: A run's folder.

    Returns:
        None for a run of no sweep.

    Raises:
        UserError: the run is not a result: it is a teacher of the sweep, or it was pruned.
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
        raise UserError("pruned by early stopping, so it is not a result")
    scaled = "" if plan.scale == 1.0 else f" at scale {plan.scale:g}"
    return (folder.path.name if trial.group == "run" else trial.group) + scaled


@functools.cache
def _read_once(folder: SweepFolder) -> SweepPlan:
    return folder.read()


@functools.cache
def _states_once(folder: SweepFolder) -> dict[str, TrialState]:
    return folder.states_noted(_read_once(folder))


def domain_of(plan: SweepPlan) -> Domain:
    """The domain of a plan's runs."""
    domain: Domain = importlib.import_module(plan.domain).DOMAIN
    return domain


def csv_of(plan: SweepPlan, states: Mapping[str, TrialState], path: Path) -> str:
    """The CSV: for each trial a row with its state, its settings and the values drawn for it."""
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


def levels(plan: SweepPlan) -> Iterator[list[Trial]]:
    """Groups of trials that can run at the same time; teachers come before the trials that need them."""
    for level in sorted({trial.level for trial in plan.trials}):
        yield [trial for trial in plan.trials if trial.level == level]


def untaught(trial: Trial, plan: SweepPlan, states: Mapping[str, TrialState]) -> list[str]:
    """The names of the sweep's own teachers that a trial needs and that are not finished."""
    wanted = teacher_names(trial.settings)
    return [one.teacher for one in plan.trials if one.teacher in wanted and states[one.name].state != FINISHED]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True, default=str))
