"""`kfrl plot`: plot a run's curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from kfrl.errors import UserError


@dataclass(frozen=True)
class PlotFlags:
    """Plot a run over training: raw returns with links and alone, and p of student and teachers per layer."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    output: Path | None = None
    """The file to write: .png, .svg or .pdf. Default: curves.png in the run's folder."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(PlotFlags, prog="kfrl plot", args=list(argv))
    target = flags.output or flags.run / "curves.png"
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output expects a file that ends in .png, .svg or .pdf, got {target.name!r}.")
    from kfrl.compare.plots import draw_run

    draw_run(flags.run, target)
    print(f"Wrote {target}")
    return 0
