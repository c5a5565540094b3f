"""`kfrl fold`: turn a student that still has links into a plain net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Ge


@dataclass(frozen=True)
class FoldFlags:
    """Fold the links of a finished or interrupted run into the weights of its student.

    Folds one layer after the other, by ridge regression on observations of the linked student's play. Prints R2 of
    each layer, and the scores of the linked and of the folded student.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    output: Path | None = None
    """The file of the folded student. Default: folded.safetensors in the run's folder."""
    observations: Annotated[int, Ge(1)] = 8_192
    """Number of observations, from every fourth step of the linked student's play."""
    answers: Path | None = None
    """Instead use the observations and the teachers' features in this file (`kfrl collect --features all`)."""
    episodes: Annotated[int, Ge(0)] = 10
    """Games that the linked and the folded student each play afterwards; may be 0."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of those games."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    from kfrl.config import checked

    flags = checked(tyro.cli(FoldFlags, prog="kfrl fold", args=list(argv)))
    from rich.console import Console

    from agents.folding import LinkedRun
    from kfrl.cli.evaluate import play_games

    console = Console()
    linked = LinkedRun(flags.run)
    output = flags.output or linked.run.folder.path / "folded.safetensors"
    linked.fold(flags.observations, lambda line: console.print(line, highlight=False), flags.answers)
    linked.save(output)
    console.print(f"Wrote {output}: {sum(p.numel() for p in linked.net.alone.parameters()):,} parameters, no teacher")
    if flags.episodes:
        for policy, title in ((linked.linked, "with its teachers' links"), (linked.alone, "folded, alone")):
            play_games(policy, linked.run.protocol, flags.episodes, flags.seed, False, title, console.print)
    return 0
