"""Published scores of others, shown for comparison and not used in any statistic."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Quoted:
    """One published score, as printed in its source."""

    source: str
    """Paper and table, or repository and commit."""
    rom: str
    method: str
    teachers: str
    """The teachers, as the source names them; empty without teachers."""
    score: float
    """Raw points."""
    approximate: bool
    """Whether the source read it off a plot."""
    protocol: str
    """How it was measured, if known."""
    max_frames: int | None
    """The frame cap of a game; None if not known."""


@functools.cache
def quoted_scores() -> tuple[Quoted, ...]:
    """All published scores that kfrl ships, grouped by source."""
    lines = Path(__file__).with_name("quoted_scores.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return tuple(
        Quoted(
            source=row["source"],
            rom=row["rom"],
            method=row["method"],
            teachers=row["teachers"],
            score=float(row["score"]),
            approximate=row["approximate"] == "yes",
            protocol=row["protocol"],
            max_frames=int(row["max_frames"]) if row["max_frames"] else None,
        )
        for row in rows
    )
