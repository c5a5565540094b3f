"""A run: what a config resolves to, and learning it split by split."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kfrl.config import load_config
from kfrl.errors import UserError
from kfrl.runs.atomic import write_text
from kfrl.runs.folder import RUNS, RunFolder
from kfrl.runs.metrics import STEP, MetricsWriter, read_metrics
from kfrl.runs.provenance import commit
from kfrl.seeding import stream
from kfrl.tabular.config import TabularConfig
from kfrl.tabular.data import SETS, Labels, Preparation, Rows, Table, check_classes, draw, load_table
from kfrl.tabular.methods.base import Learned, Task
from kfrl.tabular.students import Card, Loaded, Net, save_student
from kfrl.tabular.teachers import find_teacher, make_teacher, teacher_label
from kfrl.tabular.trees import Tree, describe

ERROR, RMSE = "test/error_percent", "test/rmse"
"""Metrics of the student; of what stands beside it they end in _NAME."""


@dataclass(frozen=True)
class Run:
    """A config with everything that it names looked up and loaded. Nothing is written yet."""

    config: TabularConfig
    table: Table
    teacher: Loaded | None
    folder: RunFolder


@dataclass(frozen=True)
class Status:
    """Where a run stands."""

    done: int
    splits: int
    doing: str
    errors: tuple[float, ...]
    """Of the student, in percent, split by split."""


class Display(Protocol):
    """Shows a run; the command line brings one."""

    def update(self, status: Status) -> None:
        """Show where the run stands."""


class Silent:
    """Shows nothing."""

    def update(self, status: Status) -> None:
        """Nothing."""


# --- beginning ----------------------------------------------------------------------------------------------


def resolve(config: TabularConfig) -> Run:
    """Read the table, find the teacher, and see that they fit.

    Raises:
        UserError: one of them does not exist, or cannot be learned from. Nothing has been written.
    """
    if not config.data:
        raise UserError(f"Which table? Give --data NAME ({', '.join(SETS)}) or --data FILE.csv")
    table = load_table(config.data, config.target, config.nominal_names, config.data_dir)
    check_classes(table, config.test, f"{config.test:g} of the cases that are tested on")
    rest = len(table) - round(config.test * len(table))
    if config.train_cases is not None and not len(table.classes) <= config.train_cases <= rest:
        raise UserError(
            f"--train-cases {config.train_cases:,} is not possible: beside the test {table.name} has {rest:,} cases in "
            f"{len(table.classes)} classes. Give {len(table.classes)} to {rest:,}."
        )
    teacher = find_teacher(config, table)
    known = config.data.casefold() in SETS or config.data.casefold().startswith("openml:")
    config = replace(
        config,
        data=config.data if known else str(Path(config.data).expanduser().absolute()),
        data_dir=config.data_dir and config.data_dir.expanduser().absolute(),
        teacher=config.teacher_name if teacher is None else str(teacher.path.resolve()),
    )
    folder = RunFolder(config.run_dir or _default_folder(config, table.name))
    return Run(replace(config, run_dir=folder.path), table, teacher, folder)


def _default_folder(config: TabularConfig, name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return RUNS / name.replace(":", "-") / config.method / f"{teacher_label(config)}-s{config.seed}-{stamp}"


def reopen(path: Path) -> Run:
    """The run that an existing folder holds.

    Raises:
        UserError: not a run's folder, or something that it needs is gone.
    """
    folder = RunFolder.of_run(path)
    return resolve(replace(load_config(folder.config, TabularConfig), run_dir=path))


# --- splits -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Which cases of a table are for what; the three masks (cases,) do not overlap."""

    learning: Rows
    validation: Rows
    test: Rows


def split_of(table: Table, config: TabularConfig, index: int) -> Split:
    """Split `index` of a run: it follows from the seed, not from the method."""
    generator = np.random.default_rng(stream(config.seed, 2 * index))
    test = draw(table.labels, config.test, generator)
    rest = ~test
    if config.train_cases is not None:
        rest = _within(table.labels, rest, config.train_cases / int(rest.sum()), generator)
    validation = _within(table.labels, rest, config.ensemble.validation, generator)
    return Split(rest & ~validation, validation, test)


def _within(labels: Labels, rows: Rows, share: float, generator: np.random.Generator) -> Rows:
    """A share of the cases of `rows`."""
    picked = np.zeros_like(rows)
    picked[np.flatnonzero(rows)[draw(labels[rows], share, generator)]] = True
    return picked


# --- learning -----------------------------------------------------------------------------------------------


def finished(run: Run) -> bool:
    """Whether all splits are done and summed up."""
    return run.folder.evaluation.is_file()


def train(run: Run, display: Display | None = None) -> dict[str, Any]:
    """Learn and test every split that is not done yet; returns what `eval.json` then holds.

    The student of the first split is written when it is learned, and a row of metrics after every split, so that a run
    that was stopped goes on with the next split and ends as it would have.
    """
    display = display or Silent()
    run.folder.path.mkdir(parents=True, exist_ok=True)
    if not run.folder.config.exists():
        run.folder.write_config(run.config)
    rows = read_metrics(run.folder.metrics)
    writer = MetricsWriter(run.folder.path, len(rows) if rows else None)
    try:
        for index in range(len(rows), run.config.splits):
            errors = tuple(row[ERROR] for row in rows)
            row = _one_split(run, index, lambda words, i=index, e=errors: _tell(display, run, i, words, e))
            writer.log(index + 1, row)
            rows.append({STEP: index + 1, **row})
    finally:
        writer.close()
    _tell(display, run, len(rows), "done", tuple(row[ERROR] for row in rows))
    result = summarise(rows)
    run.folder.write_evaluation(result)
    return result


def _tell(display: Display, run: Run, done: int, doing: str, errors: tuple[float, ...]) -> None:
    display.update(Status(done, run.config.splits, doing, errors))


def _one_split(run: Run, index: int, say: Any) -> dict[str, float]:
    table, config = run.table, run.config
    split = split_of(table, config, index)
    rows = split.learning | split.validation
    preparation = Preparation.of(table.attributes, table.values[rows])
    task = Task(
        config,
        preparation.prepare(table.values[rows]),
        table.labels[rows],
        split.validation[rows],
        len(table.classes),
        preparation,
        np.random.default_rng(stream(config.seed, 2 * index + 1)),
        say,
    )
    say(f"teacher {teacher_label(config)}")
    teacher = make_teacher(task, run.teacher, table)
    say("student")
    method = importlib.import_module(f"kfrl.tabular.methods.{config.method.replace('-', '_')}")
    learned: Learned = method.learn(task, teacher)
    row = _score(learned, task, preparation.prepare(table.values[split.test]), table.labels[split.test])
    if index == 0:
        _keep(run, learned.student, preparation, row)
    return row


def _score(learned: Learned, task: Task, cases: Any, labels: Labels) -> dict[str, float]:
    columns = task.preparation.encode(cases)
    row = {name: value for name, value in _measures("", learned.student.predict(columns), labels)}
    for name, predict in learned.others.items():
        row |= dict(_measures(f"_{name}", predict(cases), labels))
    row["test/cases"] = float(len(labels))
    student = learned.student
    if isinstance(student, Tree):
        row |= {"model/leaves": float(student.leaves), "model/depth": float(student.depth)}
    else:
        row["model/parameters"] = float(student.parameters)
    return row | {f"model/{name}": float(value) for name, value in learned.facts.items()}


def _measures(suffix: str, probabilities: Any, labels: Labels) -> Iterator[tuple[str, float]]:
    """Error in percent, and the root of the mean squared error of the probabilities."""
    yield ERROR + suffix, 100 * float((probabilities.argmax(axis=1) != labels).mean())
    target = np.eye(probabilities.shape[1])[labels]
    yield RMSE + suffix, float(np.sqrt(((probabilities - target) ** 2).mean()))


def _keep(run: Run, student: Tree | Net, preparation: Preparation, row: Mapping[str, float]) -> None:
    config, classes = run.config, run.table.classes
    card = Card(
        data=run.table.name,
        target=config.target,
        classes=classes,
        attributes=preparation.attributes,
        medians=preparation.medians,
        lows=preparation.lows,
        spans=preparation.spans,
        arch=student.arch if isinstance(student, Net) else None,
        method=config.method,
        teacher=config.teacher_name,
        seed=config.seed,
        test=config.test,
        train_cases=config.train_cases,
        evaluation={"error_percent": row[ERROR], "rmse": row[RMSE], "cases": row["test/cases"]},
        commit=commit(),
    )
    save_student(run.folder.student, student, card)
    if isinstance(student, Tree):
        write_text(run.folder.path / "tree.txt", describe(student, preparation, classes))


# --- summing up ---------------------------------------------------------------------------------------------


def summarise(rows: list[dict[str, float]]) -> dict[str, Any]:
    """What `eval.json` says: the student's errors split by split, and means over splits of the rest."""
    names = sorted(name for name in rows[0] if name not in (STEP, ERROR, RMSE))
    others = {name.removeprefix(f"{ERROR}_") for name in names if name.startswith(f"{ERROR}_")}
    errors = [row[ERROR] for row in rows]
    return {
        "test": {
            "error_percent": statistics.fmean(errors),
            "std": statistics.stdev(errors) if len(errors) > 1 else None,
            "rmse": statistics.fmean(row[RMSE] for row in rows),
            "splits": len(rows),
            "errors": errors,
        },
        "others": {
            other: {
                "error_percent": statistics.fmean(row[f"{ERROR}_{other}"] for row in rows),
                "rmse": statistics.fmean(row[f"{RMSE}_{other}"] for row in rows),
            }
            for other in sorted(others)
        },
        "model": {
            name.removeprefix("model/"): statistics.fmean(row[name] for row in rows)
            for name in names
            if name.startswith("model/")
        },
    }
