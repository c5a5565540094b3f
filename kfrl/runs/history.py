"""The history of a run as a CSV: at each review a row for each teacher, with the step."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfrl.runs.atomic import replacing
from kfrl.runs.metrics import STEP


def add(path: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows with the same columns as the existing ones."""
    _write(path, [*read(path), *({STEP: step, **row} for row in rows)])


def forget_after(path: Path, step: int) -> None:
    """Delete the rows of later steps, because a resumed run repeats them."""
    rows = read(path)
    kept = [row for row in rows if int(row[STEP]) <= step]
    if len(kept) < len(rows):
        _write(path, kept)


def read(path: Path) -> list[dict[str, str]]:
    """The rows; empty if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file) if row.get(STEP)]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
