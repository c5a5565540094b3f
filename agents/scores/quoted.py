"""Scores that others published: shown beside ours, never part of a statistic."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Quoted:
    """One published score, as printed there."""

    source: str
    """Paper and table, or repository and commit."""
    rom: str
    method: str
    teachers: str
    """As the source names them; empty without teachers."""
    score: float
    """Raw points."""
    approximate: bool
    """The source read it off a plot."""
    protocol: str
    """How it was measured, where that is known."""
    max_frames: int | None
    """The cap of a game; None where the source does not say."""


@functools.cache
def quoted_scores() -> tuple[Quoted, ...]:
    """Every published score that ships with kfrl, source by source."""
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
