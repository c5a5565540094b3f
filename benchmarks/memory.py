"""Memory of 16 workers with flow from two teachers over a whole run: sum of PSS over the launcher and its workers.

python benchmarks/memory.py --teachers zoo:seaquest,zoo:pong --output memory.csv
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from agents.benchmark import pss_mb
from agents.config import TrainConfig
from agents.launch import Session
from kfrl.training.status import Status


@dataclass(frozen=True)
class Options:
    """Record the memory of a run in the paper's shape."""

    output: Path
    """The CSV to write: a row for each of --points."""
    teachers: str
    """Two teachers, comma-separated."""
    game: str = "Seaquest"
    """The game to learn. The hand-over has a replay buffer only if a teacher plays it."""
    steps: int = 500_000
    """Agent steps of all workers together."""
    points: int = 50
    """Number of measurements."""


class Recorder:
    """Writes a row at every point of a run."""

    def __init__(self, path: Path, every: int) -> None:
        """Write a row to `path` every `every` steps."""
        self._file = path.open("w", newline="", buffering=1)
        self._rows = csv.writer(self._file)
        self._rows.writerow(["global_step", "sum_mb", "launcher_mb", "largest_worker_mb"])
        self._every, self._next = every, every

    def update(self, status: Status) -> None:
        """Measure the memory if it is due."""
        if status.done < self._next or len(held := pss_mb()) < 2:  # no workers are running
            return
        launcher, *workers = held
        self._rows.writerow([status.done, *(f"{mb:.1f}" for mb in (launcher + sum(workers), launcher, max(workers)))])
        self._next += self._every

    def say(self, text: str) -> None:
        """Print nothing."""


def main(options: Options) -> None:
    """Train, and record the memory."""
    with TemporaryDirectory() as folder:
        session = Session.start(
            TrainConfig(
                game=options.game,
                teachers=options.teachers,
                steps=options.steps,
                curve_points=0,
                eval_episodes=0,
                run_dir=Path(folder) / "run",
            )
        )
        session.prepare(Recorder(options.output, options.steps // options.points))
        session.trainer.train()
    print(options.output.read_text(), end="")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
