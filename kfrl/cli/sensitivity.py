"""`kfrl sensitivity`: how much a progressive student depends on each layer of each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isinf, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from annotated_types import Ge

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table
    from torch import Tensor

    from agents.sensitivity import FisherSums, Place, ProgressiveRun, Sensitivity


@dataclass(frozen=True)
class SensitivityFlags:
    """Measure how much a progressive student's policy depends on each layer of each column.

    Average Fisher Sensitivity (AFS) is from gradients on the student's play. Average Perturbation Sensitivity (APS) is
    from the noise in one layer of one column at which the score falls halfway to random play's; it plays many games.
    Writes sensitivity.csv, sensitivity-features.csv, sensitivity-noise.csv and sensitivity.png.
    """

    run: tyro.conf.Positional[Path]
    """The folder of a finished or interrupted run of --method progressive."""
    steps: Annotated[int, Ge(1)] = 20_000
    """Agent steps of play for AFS."""
    episodes: Annotated[int, Ge(0)] = 10
    """Games for each variance of noise that is tried for APS; 0: only AFS, which is much faster."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the games, the sampled actions and the noise."""
    output: Path | None = None
    """The folder to write to. Default: the run's folder."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    from kfrl.config import checked

    flags = checked(tyro.cli(SensitivityFlags, prog="kfrl sensitivity", args=list(argv)))
    from rich.console import Console
    from rich.progress import Progress

    from agents.sensitivity import ProgressiveRun, Sensitivity, places
    from envs.games import Game

    console = Console()
    run, folder = ProgressiveRun(flags.run), flags.output or flags.run
    with Progress(console=Console(stderr=True), transient=True) as progress:
        sums = _play(run, flags, progress)
        found, note = Sensitivity(places(run.net), sums.fisher(), {}), "APS is left out (--episodes 0)."
        # Kept if the many games of APS are interrupted.
        found.write(folder)
        if flags.episodes:
            found, note = _perturb(run, flags, sums.deviations(), found, folder, progress)
    steps, budget = run.agent.card.steps, run.config.steps
    trained = f"{steps:,} steps" if steps >= budget else f"{steps:,} of {budget:,} steps"
    title = f"{Game(run.protocol.game).title} after {trained}, {sums.observations:,} observations"
    console.print(_table(found, title))
    console.print(note, highlight=False)
    for path in found.write(folder):
        console.print(f"Wrote {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _play(run: ProgressiveRun, flags: SensitivityFlags, progress: Progress) -> FisherSums:
    task = progress.add_task("Playing for AFS", total=flags.steps)
    for sums in run.fisher(flags.steps, flags.seed):
        progress.update(task, completed=sums.observations)
    return sums


def _perturb(
    run: ProgressiveRun,
    flags: SensitivityFlags,
    deviations: Mapping[Place, Tensor],
    found: Sensitivity,
    folder: Path,
    progress: Progress,
) -> tuple[Sensitivity, str]:
    """Try noise in every layer of every column; returns `found` with it, and a sentence on the scores."""
    task = progress.add_task("Playing for APS", total=len(deviations) + 1)
    clean, random = run.clean_and_random(flags.episodes, flags.seed)
    scores = f"{clean:,.1f} points without noise, {random:,.1f} with random actions ({flags.episodes} games each)"
    if clean <= random:
        return found, f"APS is left out, because noise can take nothing from the student: {scores}."
    # Layer by layer, because APS compares the columns of a layer.
    in_order = [place for row in found.places.values() for place in row]
    for number, place in enumerate(in_order, 1):
        where = f"{place.layer} of {place.column}"
        progress.update(task, advance=1, description=f"Playing for APS: {where}")
        noise = run.perturb(place, deviations[place], (clean + random) / 2, flags.episodes, flags.seed)
        found = replace(found, perturbations={**found.perturbations, place: noise})
        found.write(folder)
        half = "never half" if isinf(noise.half) else f"half at {noise.half:.3g} times the variance"
        progress.console.print(f"APS {number} of {len(in_order)}: {where}, {half}", highlight=False)
    return found, f"APS is at {(clean + random) / 2:,.1f} points: {scores}."


def _table(found: Sensitivity, title: str) -> Table:
    from rich.table import Table

    table = Table("layer", "column", title=title, title_justify="left")
    for name in ("AFS", "share of the Fisher", "variance at half", "APS"):
        table.add_column(name, justify="right")
    for row in found.rows():
        shares = {name: "-" if isnan(row[name]) else f"{row[name]:.3f}" for name in ("afs", "fisher_share", "aps")}
        half = row["half_variance"]
        shown = "-" if isnan(half) else "none" if isinf(half) else f"{half:.3g}"
        column = row["column"] if row["column_layer"] == row["layer"] else f"{row['column']}, {row['column_layer']}"
        table.add_row(row["layer"], column, shares["afs"], shares["fisher_share"], shown, shares["aps"])
    return table
