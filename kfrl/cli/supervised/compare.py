"""`kfrl supervised compare`: methods side by side, over seeds and data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from kfrl.errors import UserError


@dataclass(frozen=True)
class CompareFlags:
    """Compare finished runs: test errors over seeds, method by method, one table for each data set."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of runs, or folders that hold them at any depth. `name=FOLDER` makes all runs there one arm of that
    name."""
    output: Path | None = None
    """Also write Markdown, CSV and LaTeX into this folder."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(CompareFlags, prog="kfrl supervised compare", args=list(argv))
    if not flags.runs:
        raise UserError("Which runs? Give their folders, or folders that hold them: kfrl supervised compare runs")
    if flags.output is not None and flags.output.exists() and not flags.output.is_dir():
        raise UserError(f"--output is a folder, and {flags.output} is a file.")
    from kfrl.cli.console import table_console
    from kfrl.cli.sheets import csv_text, top_sheet
    from kfrl.cli.supervised.sheets import data_sheet, markdown, run_rows
    from kfrl.runs.atomic import write_text
    from kfrl.runs.folder import collect
    from kfrl.supervised.compare import compare, read_run

    comparison = compare(*collect(flags.runs, read_run))
    console = table_console(markup=False)
    for data in comparison.data:
        console.print(data_sheet(comparison, data).rich())
        errors = {arm.name: arm.errors for arm in comparison.arms if arm.data == data}
        top = top_sheet(f"{data}, error in %", errors, higher_is_better=False)
        if top.rows:
            console.print(top.rich())
    for note in comparison.notes:
        console.print(f"- {note}", soft_wrap=True)
    if flags.output is not None:
        texts = {"comparison.md": markdown(comparison), "runs.csv": csv_text(run_rows(comparison))}
        texts |= {
            f"errors-{data}.tex": data_sheet(comparison, data).latex(comparison.notes) for data in comparison.data
        }
        for name, text in texts.items():
            write_text(flags.output / name, text)
        console.print(f"Wrote {flags.output}: {', '.join(texts)}", soft_wrap=True)
    return 0
