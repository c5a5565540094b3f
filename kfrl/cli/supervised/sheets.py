"""The tables of `kfrl supervised compare`, for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kfrl.cli.sheets import FEW, number
from kfrl.compare.sheet import Sheet
from kfrl.supervised.compare import Arm, Comparison


def data_sheet(comparison: Comparison, data: str) -> Sheet:
    """One data set: errors of every arm."""
    arms = [arm for arm in comparison.arms if arm.data == data]
    images = number({run.test.images for arm in arms for run in arm.runs})
    columns = ["arm", "n", "error, %", "of each seed", "accuracy, %", "parameters\ntrained", "parameters\ndeployed"]
    return Sheet(f"{data}: {images} test images", columns, [_row(arm) for arm in arms])


def _row(arm: Arm) -> list[str]:
    spread = "" if arm.std is None else f" +- {arm.std:.2f}"
    each = arm.errors if len(arm.errors) <= FEW else [min(arm.errors), max(arm.errors)]
    joined = ", ".join(f"{error:.2f}" for error in each)
    return [
        arm.name,
        str(len(arm.runs)),
        f"{arm.mean:.2f}{spread}",
        joined if len(arm.errors) <= FEW else joined.replace(", ", " to "),
        f"{100 - arm.mean:.2f}{spread}",
        number(run.trained for run in arm.runs),
        number(run.deployed for run in arm.runs),
    ]


def markdown(comparison: Comparison) -> str:
    """Everything on one page."""
    parts = ["# Comparison"]
    for data in comparison.data:
        sheet = data_sheet(comparison, data)
        parts += [f"## {sheet.title}", sheet.markdown()]
    parts += ["## What to know beside the numbers", "\n".join(f"- {note}" for note in comparison.notes)]
    return "\n\n".join(parts) + "\n"


def run_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A row for each run."""
    for arm in comparison.arms:
        for run in arm.runs:
            yield {
                "run": str(run.path),
                "data": arm.data,
                "arm": arm.name,
                "method": run.config.label,
                "teachers": run.config.teachers,
                "seed": run.config.seed,
                "epochs": run.config.epochs,
                "kept_epoch": run.card.epochs,
                "error_percent": run.test.error_percent,
                "accuracy_percent": 100 - run.test.error_percent,
                "validation_accuracy": run.card.validation_accuracy,
                "trained_parameters": run.trained,
                "deployed_parameters": run.deployed,
                "commit": run.card.commit,
            }
