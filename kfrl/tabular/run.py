"""A run on a table: resolve its config, then train and test split by split."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kfrl.config import load_config
from kfrl.errors import UserError
from kfrl.runs.atomic import write_text
from kfrl.runs.folder import RUNS, RunFolder
from kfrl.runs.metrics import STEP, MetricsWriter, read_metrics
from kfrl.runs.provenance import check_pinned, commit
from kfrl.seeding import stream
from kfrl.tabular.config import TabularConfig
from kfrl.tabular.methods.base import Learned, SplitTask
from kfrl.tabular.students import Card, Loaded, Net, save_student
from kfrl.tabular.tables import SETS, Labels, Preparation, Rows, Table, check_classes, draw, load_table
from kfrl.tabular.teachers import find_teacher, make_teacher, teacher_label
from kfrl.tabular.trees import Tree, describe
from kfrl.training.session import Silent
from kfrl.training.trainer import Display

ERROR, RMSE = "test/error_percent", "test/rmse"
"""Metrics of the student; those of another model end in _NAME."""


@dataclass(frozen=True)
class Run:
    """A run on a table: a config, with its table and teacher loaded. Nothing is written yet."""

    config: TabularConfig
    table: Table
    teacher: Loaded | None
    folder: RunFolder


@dataclass(frozen=True)
class SplitStatus:
    """The status of a run on a table, in splits; it has no rate, unlike `kfrl.training.status.Status`."""

    done: int
    splits: int
    part: str
    """What is being trained."""
    errors: tuple[float, ...]
    """Test errors of the student in percent, one for each split."""


# --- beginning ----------------------------------------------------------------------------------------------


def resolve(config: TabularConfig) -> Run:
    """Read the table, find the teacher, and check that they fit.

    Raises:
        UserError: one of them does not exist or cannot be used. Nothing has been written.
    """
    if not config.data:
        raise UserError(f"Which table? Give --data NAME ({', '.join(SETS)}) or --data FILE.csv")
    table = load_table(config.data, config.target, config.nominal_names, config.data_dir)
    check_classes(table, config.test)
    rest = len(table) - round(config.test * len(table))
    if config.train_cases is not None and not len(table.classes) <= config.train_cases <= rest:
        raise UserError(
            f"--train-cases {config.train_cases:,} is not possible: without its test cases {table.name} has {rest:,} "
            f"cases in {len(table.classes)} classes. Give {len(table.classes)} to {rest:,}."
        )
    teacher = find_teacher(config, table)
    found = [teacher] if teacher is not None else []
    checksums = tuple(one.sha256 for one in found)
    check_pinned([one.path for one in found], checksums, config.teacher_sha256)
    known = config.data.casefold() in SETS or config.data.casefold().startswith("openml:")
    config = replace(
        config,
        data=config.data if known else str(Path(config.data).expanduser().absolute()),
        data_dir=config.data_dir and config.data_dir.expanduser().absolute(),
        teacher=config.teacher_name if teacher is None else str(teacher.path.resolve()),
        teacher_sha256=checksums,
    )
    folder = RunFolder(config.run_dir or _default_folder(config, table.name))
    return Run(replace(config, run_dir=folder.path), table, teacher, folder)


def _default_folder(config: TabularConfig, name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return RUNS / name.replace(":", "-") / config.method / f"{teacher_label(config)}-s{config.seed}-{stamp}"


def reopen(path: Path) -> Run:
    """The run in an existing folder.

    Raises:
        UserError: not a run's folder, or something that the run needs is missing.
    """
    folder = RunFolder.of_run(path)
    return resolve(replace(load_config(folder.config, TabularConfig), run_dir=path))


# --- splits -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Training, validation and test cases of a table, as three disjoint masks (cases,)."""

    learning: Rows
    validation: Rows
    test: Rows


def split_of(table: Table, config: TabularConfig, index: int) -> Split:
    """Split `index` of a run; it depends on the seed, not on the method."""
    generator = np.random.default_rng(stream(config.seed, 2 * index))
    test = draw(table.labels, config.test, generator)
    rest = ~test
    if config.train_cases is not None:
        rest = _within(table.labels, rest, config.train_cases / int(rest.sum()), generator)
    validation = _within(table.labels, rest, config.ensemble.validation, generator)
    return Split(rest & ~validation, validation, test)


def _within(labels: Labels, rows: Rows, share: float, generator: np.random.Generator) -> Rows:
    """Draw a share of the cases in `rows`."""
    picked = np.zeros_like(rows)
    picked[np.flatnonzero(rows)[draw(labels[rows], share, generator)]] = True
    return picked


# --- training -----------------------------------------------------------------------------------------------


def finished(run: Run) -> bool:
    """Whether all splits are done and eval.json is written."""
    return run.folder.evaluation.is_file()


def train(run: Run, display: Display | None = None) -> dict[str, Any]:
    """Train and test on every split that is not done yet; returns the content of `eval.json`.

    The student of the first split is written when it is trained, and a row of metrics after every split. So a stopped
    run goes on with the next split, and ends with the same result.
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
    result = {**summarise(rows), "teacher_sha256": list(run.config.teacher_sha256)}
    run.folder.write_evaluation(result)
    return result


def _tell(display: Display, run: Run, done: int, part: str, errors: tuple[float, ...]) -> None:
    display.update(SplitStatus(done, run.config.splits, part, errors))


def _one_split(run: Run, index: int, say: Any) -> dict[str, float]:
    table, config = run.table, run.config
    split = split_of(table, config, index)
    rows = split.learning | split.validation
    preparation = Preparation.of(table.attributes, table.values[rows])
    task = SplitTask(
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


def _score(learned: Learned, task: SplitTask, cases: Any, labels: Labels) -> dict[str, float]:
    columns = task.preparation.encode(cases)
    row = {name: value for name, value in _measures("", learned.student.predict(columns), labels)}
    for name, predict in learned.others.items():
        row |= dict(_measures(f"_{name}", predict(cases), labels))
    row |= {"test/cases": float(len(labels)), "train/cases": float(len(task.labels))}
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
        teacher_sha256=config.teacher_sha256,
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
    """The content of `eval.json`: the student's error on each split, and means over splits of all other metrics."""
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
