"""Keep the final scores of runs as a CSV file beside the pages that quote them.

    python benchmarks/keep_results.py docs/measured/atari.csv runs/flow runs/scratch

A run that is in the file already is replaced. tests/test_measured.py holds the pages' tables against the file.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from kfrl.config import read_yaml
from kfrl.runs.folder import RunFolder
from kfrl.runs.metrics import read_metrics

COLUMNS = (
    *(
        "arm",
        "game",
        "method",
        "teachers",
        "teacher_sha256",
        "steps",
        "seed",
        "games",
        "mean",
        "std",
        "ci_low",
        "ci_high",
    ),
    *("shape", "lr", "protocol", "commit", "source", "hours"),
)


def main(
    output: tyro.conf.Positional[Path],
    runs: tyro.conf.Positional[tuple[Path, ...]],
    arm: Annotated[str, tyro.conf.arg(help="What differs from the method's defaults, in a word.")] = "",
) -> None:
    """Add runs to the file."""
    rows = {_key(row): row for row in read(output)} if output.exists() else {}
    for run in runs:
        row = row_of(RunFolder(run), arm)
        rows[_key(row)] = row
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def read(path: Path) -> list[dict[str, str]]:
    """The rows of such a file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row_of(folder: RunFolder, arm: str) -> dict[str, str]:
    """A finished run as a row: scores in raw points, exact enough to be rounded as the pages print them.

    `hours` are those of the clock, with what else the machine had to do.
    """
    settings: dict[str, Any] = read_yaml(folder.config)
    found: dict[str, Any] = json.loads(folder.evaluation.read_text(encoding="utf-8"))
    wanted = {name: found[name] for name in ("mean", "std", "ci_low", "ci_high")}
    # Games of one score have no interval.
    scores = {name: "" if value is None else f"{value:.4f}" for name, value in wanted.items()}
    teachers = settings["teachers"] or ""
    return {
        "arm": arm or settings["method"],
        "game": found["game"],
        "method": settings["method"],
        "teachers": ",".join(Path(name).stem if "/" in name else name for name in teachers.split(",")),
        "teacher_sha256": " ".join(hashed[:12] for hashed in found["teacher_sha256"]),
        "steps": str(settings["steps"]),
        "seed": str(settings["seed"]),
        "games": str(found["episodes"]),
        **scores,
        "shape": f"{settings['workers']}x{settings['envs_per_worker']}x{settings['t_max']}",
        "lr": f"{settings['lr']:g}",
        "protocol": found["protocol"]["fingerprint"],
        "commit": (found["commit"] or "")[:8],
        "source": "eval.json",
        "hours": f"{max(row.get('time/elapsed_sec', 0.0) for row in read_metrics(folder.metrics)) / 3600:.2f}",
    }


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("arm", "game", "teachers", "steps", "seed"))


if __name__ == "__main__":
    tyro.cli(main)
