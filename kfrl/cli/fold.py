"""`kfrl fold`: the student of a run that is still linked, as a plain net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Ge


@dataclass(frozen=True)
class FoldFlags:
    """Fold what the links of a finished or interrupted run bring into its student's own weights.

    Layer after layer, by ridge regression on the linked student's own play; prints R2 of each layer, and what the
    student scores with its links and folded, alone.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    output: Path | None = None
    """Where the folded student goes. Default: folded.safetensors in the run's folder."""
    observations: Annotated[int, Ge(1)] = 8_192
    """Observations of the linked student's play, every fourth step of it."""
    answers: Path | None = None
    """Fold on observations and teachers' features of this file instead (`kfrl collect --features all`)."""
    episodes: Annotated[int, Ge(0)] = 10
    """Games that each of the two then plays; 0: none."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of these games."""


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
