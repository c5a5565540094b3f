"""Metrics of a run, as one CSV and as TensorBoard events."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from kfrl.runs.atomic import replacing
from kfrl.runs.loggers import Loggers

STEP = "global_step"


class MetricsWriter:
    """Appends rows to `metrics.csv` and the same scalars to TensorBoard events in one folder."""

    def __init__(self, directory: Path, resume_at: int | None = None, loggers: Loggers | None = None) -> None:
        """Open both; a resumed run deletes the rows after its checkpoint.

        Args:
            directory: The run's folder.
            resume_at: The global step of the checkpoint, or None for a new run.
            loggers: Loggers that also get every row.
        """
        from torch.utils.tensorboard import SummaryWriter  # imported here: reading a curve does not need torch

        self._path, self._loggers = directory / "metrics.csv", loggers
        rows = [] if resume_at is None else read_metrics(self._path)
        kept = [row for row in rows if row[STEP] <= (resume_at or 0)]
        self._columns = [STEP, *sorted({name for row in kept for name in row} - {STEP})]
        self._write(kept)
        self._events = SummaryWriter(str(directory), purge_step=None if resume_at is None else resume_at + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row: `values` at `step` agent steps."""
        if not set(values) <= set(self._columns):
            rows = read_metrics(self._path)
            self._columns += sorted(set(values) - set(self._columns))
            self._write(rows)
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow({STEP: step, **values})
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self._loggers is not None:
            self._loggers.log(step, values)

    def close(self) -> None:
        """Flush the events."""
        self._events.close()

    def _write(self, rows: list[dict[str, float]]) -> None:
        with replacing(self._path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv` without their empty cells; an empty list if there is no such file."""
    if not path.exists():
        return []
    # A crash can cut off the last line, which then has no line break.
    whole_lines = path.read_text().rpartition("\n")[0].splitlines()
    return [
        {name: float(cell) for name, cell in row.items() if name and cell}
        for row in csv.DictReader(whole_lines)
        if row.get(STEP)
    ]
