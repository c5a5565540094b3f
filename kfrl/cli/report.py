"""`kfrl report`: write one HTML page about runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from kfrl.errors import UserError

if TYPE_CHECKING:
    from kfrl.compare.report import RunFiles, Section


@dataclass(frozen=True)
class ReportFlags:
    """Write one HTML page about runs: curves, p per layer, links, final games, comparison, settings, provenance.

    It needs no network and no server: open it in a browser. One page can show runs on games and on images. Of a
    damaged or incomplete run it shows what can be read.
    """

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of runs, or folders that contain them at any depth. `name=FOLDER` puts all runs there into one arm with
    that name. The page includes a video in a run's folder (kfrl eval RUN --video RUN/play.mp4)."""
    output: Path = Path("report.html")
    """The file of the page."""
    baseline: str | None = None
    """The arm or method that the others are compared with. Default: scratch."""
    allow_mixed: bool = False
    """Compare runs of different budgets, protocols or games; they become separate arms, and a note says so."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(ReportFlags, prog="kfrl report", args=list(argv))
    if not flags.runs:
        raise UserError("No run is given. Give folders of runs, or folders that contain them: kfrl report runs")
    if flags.output.suffix not in (".html", ".htm"):
        raise UserError(f"--output expects a file that ends in .html, got {flags.output.name!r}.")
    if flags.output.is_dir():
        raise UserError(f"--output expects a file, and {flags.output} is a folder.")
    from kfrl.compare.report import Section as Part
    from kfrl.compare.report import differing_table, read_files, render, run_section
    from kfrl.runs.atomic import write_text
    from kfrl.runs.folder import find_runs

    found, skipped = find_runs(flags.runs)
    runs = [read_files(path) for path, _ in found]
    if all(run.empty for run in runs):
        raise UserError(f"{', '.join(flags.runs)}: no run can be read. A run's folder holds a config.yaml.")
    sections = list(_comparisons(flags, runs))
    differing = differing_table(runs)
    if differing:
        sections.append(Part("Settings that differ", tables=[differing]))
    if skipped:
        sections.append(Part("Left out", notes=[f"{entry.path}: {entry.reason}" for entry in skipped]))
    sections += [run_section(run) for run in runs]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    text = render(f"kfrl report: {title}", sections)
    write_text(flags.output, text)
    broken = sum(bool(run.problems) for run in runs)
    told = f", {broken} of them incomplete" if broken else ""
    print(f"Wrote {flags.output}: {len(runs)} runs{told}, {len(text.encode()) / 1e6:.1f} MB. Open it in a browser.")
    return 0


def _comparisons(flags: ReportFlags, runs: Sequence[RunFiles]) -> list[Section]:
    """The results of `kfrl compare` and `kfrl supervised compare` for the finished runs of each domain."""
    found = []
    if any("game" in run.config for run in runs):
        found += _games(flags)
    if any("data" in run.config and "game" not in run.config for run in runs):
        found += _images(flags)
    return found


def _games(flags: ReportFlags) -> list[Section]:
    from agents.compare.comparison import compare
    from agents.compare.records import read_run
    from envs.games import Game
    from kfrl.cli.compare import curves_by_arm
    from kfrl.cli.sheets import aggregate_sheet, game_sheets, quoted_note, quoted_sheet
    from kfrl.compare.plots import arm_curves
    from kfrl.compare.report import Chart, Curve
    from kfrl.compare.report import Section as Part
    from kfrl.runs.folder import collect

    records, left_out = collect(flags.runs, read_run)
    try:
        comparison = compare(records, left_out, flags.baseline, flags.allow_mixed)
    except UserError as error:
        return [Part("Games: not compared", notes=str(error).splitlines())]
    sections = []
    for game in comparison.games:
        training: list[Curve] = []
        alone: list[Curve] = []
        for name, rows in curves_by_arm(comparison, game).items():
            curves = arm_curves(rows)
            for kind, held in ((training, curves.training), (alone, curves.alone)):
                if len(runs := held.returns):
                    lines = (held.steps, runs.mean(0), runs.min(0), runs.max(0))
                    kind.append(Curve(name, *(line.tolist() for line in lines)))
        charts = [
            Chart("Returns while training: mean and range over seeds", "agent steps", "raw points", training),
            Chart("Student alone: mean and range over seeds", "agent steps", "raw points", alone),
        ]
        tables = game_sheets(comparison, game)
        sections.append(Part(Game(game).title, charts=charts, tables=tables))
    if comparison.aggregates:
        sections.append(Part("Across games", tables=[aggregate_sheet(comparison)]))
    quoted = quoted_sheet(comparison.games)
    if quoted.rows:
        sections.append(Part("Quoted, not run here", notes=[quoted_note(comparison)], tables=[quoted]))
    return [*sections, Part("Limits of the comparison of games", notes=comparison.notes)]


def _images(flags: ReportFlags) -> list[Section]:
    from kfrl.cli.supervised.sheets import data_sheet
    from kfrl.compare.report import Section as Part
    from kfrl.runs.folder import collect
    from kfrl.supervised.compare import compare, read_run

    try:
        comparison = compare(*collect(flags.runs, read_run))
    except UserError as error:
        return [Part("Images: not compared", notes=str(error).splitlines())]
    sections = [Part(data, tables=[data_sheet(comparison, data)]) for data in comparison.data]
    return [*sections, Part("Limits of the comparison of images", notes=comparison.notes)]
