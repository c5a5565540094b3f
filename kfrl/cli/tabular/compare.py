"""`kfrl tabular compare`: methods side by side, over splits and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from kfrl.errors import UserError

if TYPE_CHECKING:
    from kfrl.compare.sheet import Sheet
    from kfrl.tabular.compare import Arm, Comparison, Difference


@dataclass(frozen=True)
class CompareFlags:
    """Compare finished runs: test errors over splits, leaves, and the models that were scored beside the students."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of runs, or folders that hold them at any depth. `name=FOLDER` makes all runs there one arm of that
    name."""
    output: Path | None = None
    """Also write Markdown and CSV into this folder."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(CompareFlags, prog="kfrl tabular compare", args=list(argv))
    if not flags.runs:
        raise UserError("Which runs? Give their folders, or folders that hold them: kfrl tabular compare runs")
    if flags.output is not None and flags.output.exists() and not flags.output.is_dir():
        raise UserError(f"--output is a folder, and {flags.output} is a file.")
    from kfrl.cli.console import table_console
    from kfrl.cli.sheets import csv_text
    from kfrl.runs.atomic import write_text
    from kfrl.runs.folder import collect
    from kfrl.tabular.compare import compare, read_run

    comparison = compare(*collect(flags.runs, read_run))
    console = table_console(markup=False)
    sheets = [sheet for data in comparison.data for sheet in _sheets(comparison, data)]
    for sheet in sheets:
        console.print(sheet.rich())
    for note in comparison.notes:
        console.print(f"- {note}", soft_wrap=True)
    if flags.output is not None:
        parts = ["# Comparison", *(f"## {sheet.title}\n\n{sheet.markdown()}" for sheet in sheets)]
        parts += ["## What to know beside the numbers", "\n".join(f"- {note}" for note in comparison.notes)]
        texts = {"comparison.md": "\n\n".join(parts) + "\n", "splits.csv": csv_text(_split_rows(comparison))}
        for name, text in texts.items():
            write_text(flags.output / name, text)
        console.print(f"Wrote {flags.output}: {', '.join(texts)}", soft_wrap=True)
    return 0


def _sheets(comparison: Comparison, data: str) -> Iterator[Sheet]:
    from kfrl.compare.sheet import Sheet

    arms = [arm for arm in comparison.arms if arm.data == data]
    base = comparison.base(data)
    columns = ["arm", "splits", "error, %", "teacher's\nerror, %", "leaves", "RMSE"]
    columns += [f"minus {base.name},\npoints [95 %]", "p"] if base else []
    columns += ["survey's\nerror, %"]
    yield Sheet(f"{data}: test errors", columns, [_row(arm, base) for arm in arms])
    rows = [row for arm in arms for row in _beside(arm)]
    if rows:
        yield Sheet(
            f"{data}: beside the students", ["arm", "model", "error, %", "RMSE", "share of\nthe gain"], rows, left=2
        )


def _row(arm: Arm, base: Arm | None) -> list[str]:
    import statistics

    from kfrl.tabular.compare import SURVEY, difference
    from kfrl.tabular.run import ERROR, RMSE

    errors = arm.values(ERROR)
    spread = f" +- {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    row = [
        arm.name,
        str(len(errors)),
        f"{statistics.fmean(errors):.2f}{spread}",
        _number(arm.mean(f"{ERROR}_teacher"), ".2f"),
    ]
    row += [_number(arm.model("leaves"), ".1f"), _number(arm.mean(RMSE), ".4f")]
    if base is not None:
        row += _difference(difference(arm, base))
    return [*row, _number(SURVEY.get(arm.data, {}).get(arm.runs[0].label), ".1f")]


def _difference(gap: Difference | None) -> list[str]:
    """A difference with its interval, and its p value."""
    from kfrl.cli.sheets import NONE

    if gap is None:
        return [NONE, NONE]
    interval = "" if gap.low is None else f" [{gap.low:+.2f}, {gap.high:+.2f}]"
    return [f"{gap.mean:+.2f}{interval}", _number(gap.p, ".3f")]


def _beside(arm: Arm) -> Iterator[list[str]]:
    from kfrl.tabular.compare import share_of_gain
    from kfrl.tabular.run import ERROR, RMSE

    for name in ("student", *arm.others) if len(arm.others) > 1 else ():
        suffix = "" if name == "student" else f"_{name}"
        numbers = [_number(arm.mean(ERROR + suffix), ".2f"), _number(arm.mean(RMSE + suffix), ".4f")]
        yield [arm.name, name, *numbers, _number(share_of_gain(arm, name), ".2f")]


def _number(value: float | None, form: str) -> str:
    from kfrl.cli.sheets import NONE

    return NONE if value is None else format(value, form)


def _split_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A row for each split of each run."""
    from kfrl.tabular.run import ERROR, RMSE

    for arm in comparison.arms:
        for run in arm.runs:
            for index, row in enumerate(run.rows):
                yield {
                    "run": str(run.path),
                    "data": arm.data,
                    "arm": arm.name,
                    "seed": run.config.seed,
                    "split": index + 1,
                    "error_percent": row[ERROR],
                    "rmse": row[RMSE],
                    "teacher_error_percent": row.get(f"{ERROR}_teacher"),
                    "leaves": row.get("model/leaves"),
                    "parameters": row.get("model/parameters"),
                }
