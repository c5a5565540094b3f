"""`kfrl tabular train`: train a small model on a table, from the labels or from a teacher."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from kfrl.config import checked, load_config
from kfrl.errors import UserError
from kfrl.tabular.config import TabularConfig

if TYPE_CHECKING:
    from kfrl.cli.display import RunDisplay, View
    from kfrl.tabular.run import Run, SplitStatus

PROG = "kfrl tabular train"


@dataclass(frozen=True)
class TrainFlags:
    """Train one small model to classify the cases of a table, from the labels or from a teacher.

    The result is in runs/<data>/<method>/...: the student of the first split (a tree also as text and picture), and
    the errors on every split's test cases.
    """

    config: Path | None = None
    """A YAML file of settings; flags override it. Every run writes one, config.yaml."""
    resume: Path | None = None
    """The folder of a run to continue, with its own settings."""
    settings: TabularConfig = field(default_factory=TabularConfig)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = _read_flags(argv)
    from kfrl.tabular.run import reopen, resolve
    from kfrl.training.session import begin

    if flags.resume is not None:
        return _train(reopen(flags.resume))
    return _train(begin(resolve(flags.settings), PROG, named=flags.settings.run_dir is not None))


def _read_flags(argv: Sequence[str]) -> TrainFlags:
    """The flags, over the settings of the file that --config names."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    early, others = first.parse_known_args(list(argv))
    if early.resume is not None and (others or early.config) and "--help" not in others:
        given = " ".join(others) or "--config"
        raise UserError(f"--resume continues a run with its own settings and takes no other flag, got {given}.")
    settings = TabularConfig() if early.config is None else load_config(early.config, TabularConfig)
    flags = tyro.cli(
        TrainFlags,
        prog=PROG,
        args=list(argv),
        default=TrainFlags(settings=settings),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return replace(flags, settings=checked(flags.settings))


def _train(run: Run) -> int:
    from kfrl.cli.display import open_display
    from kfrl.tabular.run import finished, train

    folder = run.folder
    with open_display(folder.log, view) as display:
        if finished(run):
            display.say(f"{folder.path} is finished. Its scores: {folder.evaluation}")
            return 0
        _introduce(display, run)
        try:
            result = train(run, display)
        except KeyboardInterrupt:
            display.close()
            again = f"{PROG} --resume {shlex.quote(str(folder.path))}"
            display.say(f"Stopped; all finished splits are kept. Resume with: {again}")
            return 130
        display.close()
        _conclude(display, run, result)
    return 0


def _introduce(display: RunDisplay, run: Run) -> None:
    from kfrl.tabular.teachers import teacher_label

    config, table = run.config, run.table
    taught = "" if config.teacher_name == "none" else f" · teacher {teacher_label(config)}"
    display.title = f"{table.name} · {config.method}{taught}"
    display.say(display.title, "bold")
    nominal = sum(attribute.categories is not None for attribute in table.attributes)
    tested = round(config.test * len(table))
    learned = config.train_cases or len(table) - tested
    display.say(
        f"{len(table):,} cases, {len(table.attributes)} attributes ({nominal} nominal), {len(table.classes)} classes; "
        f"{config.splits} splits: {learned:,} training cases, {tested:,} test cases"
    )
    display.say(f"Writing to {run.folder.path}")


def view(status: SplitStatus) -> View:
    """The part of a status that is shown."""
    from kfrl.cli.display import View

    mean = f"{sum(status.errors) / len(status.errors):.2f} %" if status.errors else "..."
    facts = [
        ("split", f"{min(status.done + 1, status.splits)} of {status.splits}"),
        ("training", status.part),
        ("test error so far", mean),
    ]
    return View(status.done, status.splits, facts)


def _conclude(display: RunDisplay, run: Run, result: dict[str, Any]) -> None:
    from kfrl.runs.metrics import read_metrics
    from kfrl.tabular.pictures import draw_sizes, draw_tree
    from kfrl.tabular.students import load_student
    from kfrl.tabular.trees import Tree

    folder, test = run.folder, result["test"]
    spread = "" if test["std"] is None else f" +- {test['std']:.2f}"
    display.say(
        f"\nTest error of the student: {test['error_percent']:.2f}{spread} %, RMSE {test['rmse']:.4f}, "
        f"{test['splits']} splits"
    )
    for name, other in result["others"].items():
        display.say(f"{name}: {other['error_percent']:.2f} %, RMSE {other['rmse']:.4f}")
    display.say(", ".join(f"{name.replace('_', ' ')} {value:,.6g}" for name, value in result["model"].items()))
    loaded = load_student(folder.student)
    display.say(f"The student of the first split: {folder.student}")
    if isinstance(loaded.student, Tree):
        picture = folder.path / "tree.png"
        draw_tree(loaded.student, loaded.card.preparation, loaded.card.classes, picture)
        display.say(f"As text: {folder.path / 'tree.txt'}; as a picture: {picture}")
    if draw_sizes(read_metrics(folder.metrics), folder.curves):
        display.say(f"Error over the number of synthetic cases: {folder.curves}")
