"""`kfrl compare`: compare methods over seeds and games."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from kfrl.errors import UserError

if TYPE_CHECKING:
    from agents.compare.comparison import Comparison
    from kfrl.compare.sheet import Sheet

OURS = (
    "aggregate.csv",
    "aggregate.tex",
    "quoted.tex",
    "scores-*.tex",
    "learning-*.tex",
    "training-*.tex",
    "curves-*.png",
)
"""The files in `--output` that only some comparisons write."""


@dataclass(frozen=True)
class CompareFlags:
    """Compare finished runs: scores over seeds, against scratch and across games, with 95 % intervals."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of runs, or folders that contain them at any depth. `name=FOLDER` puts all runs there into one arm with
    that name."""
    baseline: str | None = None
    """The arm or method that the others are compared with. Default: scratch."""
    output: Path | None = None
    """Also write Markdown, CSV, LaTeX and plots of the learning curves into this folder."""
    allow_mixed: bool = False
    """Accept runs of different budgets, protocols or games; they become separate arms, and a note says so."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(CompareFlags, prog="kfrl compare", args=list(argv))
    if not flags.runs:
        raise UserError("No run is given. Give folders of runs, or folders that contain them: kfrl compare runs")
    if flags.output is not None and flags.output.exists() and not flags.output.is_dir():
        raise UserError(f"--output expects a folder, and {flags.output} is a file. Give another --output.")
    from agents.compare.comparison import compare
    from agents.compare.records import read_run
    from kfrl.runs.folder import collect

    records, skipped = collect(flags.runs, read_run)
    comparison = compare(records, skipped, flags.baseline, flags.allow_mixed)
    _print(comparison)
    if flags.output is not None:
        written = list(_write(comparison, flags.output))
        print(f"\nWrote {flags.output}: {', '.join(written)}")
        others = sorted({path.name for pattern in OURS for path in flags.output.glob(pattern)} - set(written))
        if others:
            print(f"The folder also holds files of an earlier comparison: {', '.join(others)}")
    return 0


def _print(comparison: Comparison) -> None:
    from kfrl.cli.console import table_console
    from kfrl.cli.sheets import aggregate_sheet, game_sheets, quoted_note, quoted_sheet

    console = table_console(markup=False)
    for game in comparison.games:
        for sheet in (*game_sheets(comparison, game), *_tops(comparison, game)):
            if sheet.rows:
                console.print(sheet.rich())
    if comparison.aggregates:
        console.print(aggregate_sheet(comparison).rich())
    quoted = quoted_sheet(comparison.games)
    if quoted.rows:
        console.print(quoted.rich())
        console.print(quoted_note(comparison), soft_wrap=True)
    console.print()
    for note in comparison.notes:
        console.print(f"- {note}", soft_wrap=True)


def _tops(comparison: Comparison, game: str) -> tuple[Sheet, Sheet]:
    """The best runs by their final scores, and by the areas under their training curves, as Rusu et al. choose them."""
    from envs.games import Game
    from kfrl.cli.sheets import top_sheet

    cells, title = [cell for cell in comparison.cells if cell.game == game], Game(game).title
    areas = {cell.arm.name: cell.training.heights if cell.training else () for cell in cells}
    scores = top_sheet(title, {cell.arm.name: cell.scores for cell in cells})
    return scores, top_sheet(f"{title}, area under the training curve", areas)


def _write(comparison: Comparison, directory: Path) -> Iterator[str]:
    """Write every file atomically; yields their names."""
    from envs.games import Game
    from kfrl.cli.sheets import (
        aggregate_rows,
        aggregate_sheet,
        cell_rows,
        csv_text,
        game_sheets,
        markdown,
        quoted_note,
        quoted_sheet,
        run_rows,
    )
    from kfrl.compare.plots import draw_arms
    from kfrl.runs.atomic import write_text

    texts = {
        "comparison.md": markdown(comparison),
        "scores.csv": csv_text(cell_rows(comparison)),
        "runs.csv": csv_text(run_rows(comparison)),
    }
    if comparison.aggregates:
        texts["aggregate.csv"] = csv_text(aggregate_rows(comparison))
        texts["aggregate.tex"] = aggregate_sheet(comparison).latex(comparison.notes)
    quoted = quoted_sheet(comparison.games)
    if quoted.rows:
        texts["quoted.tex"] = quoted.latex([quoted_note(comparison)])
    for game in comparison.games:
        for name, sheet in zip(("scores", "learning", "training"), game_sheets(comparison, game), strict=True):
            if sheet.rows:
                texts[f"{name}-{Game(game).file_name}.tex"] = sheet.latex(comparison.notes)
        curves = f"curves-{Game(game).file_name}.png"
        draw_arms(curves_by_arm(comparison, game), directory / curves)
        yield curves
    for name, text in texts.items():
        write_text(directory / name, text)
        yield name


def curves_by_arm(comparison: Comparison, game: str) -> dict[str, list[Sequence[Mapping[str, float]]]]:
    """The metrics of each arm's runs in a game, by the arm's name in the legend."""
    return {
        f"{arm.name}, {len(arm.runs[game])} {'seeds' if len(arm.runs[game]) > 1 else 'seed'}": [
            run.rows for run in arm.runs[game]
        ]
        for arm in comparison.arms
        if game in arm.runs
    }
