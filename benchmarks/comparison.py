"""Study of all methods on two games, with the same teachers and the same budget of agent steps in the game itself.

    python benchmarks/comparison.py run --out comparison
    kfrl compare "policy-distillation (a3c)=comparison/policy-distillation" comparison --output tables

`run` trains every arm with the first seed, the most important and the cheapest arms first, then the other seeds.
Finished runs are skipped and interrupted ones resumed, so that it can be stopped and started again. `list` prints the
state of each run.

All arms have the same workers, games, learning rate and protocol, and their method's defaults, with these exceptions:

- fine-tune uses only the first teacher.
- policy-distillation needs a teacher of the same game, and none of the teachers plays it. It gets the student of the
  a3c run with its game and seed, so its row compares a new net with a scratch run after as many steps of imitation.
- pathnet and distral have no teachers: they learn the teachers' games themselves. Those steps are not in the budget;
  `kfrl compare` counts them separately, like the frames of the teachers' training. distral learns all games at the same
  time, so each game has as many workers as with the other methods.
- pathnet's population is small enough to be played several times in a short run. Its source games, learned one after
  the other, share the number of steps that actor-mimic has for both at the same time.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge

from agents.teachers.store import load_teachers
from envs.atari import identify
from envs.games import Game, find_game
from kfrl.config import split_names
from kfrl.errors import UserError
from kfrl.runs.folder import RUNS, RunFolder
from kfrl.training.signals import noting_signals

METHODS = (
    "a3c",
    "fine-tune",
    "knowledge-flow",
    "progressive",
    "policy-distillation",
    "actor-mimic",
    "distral",
    "pathnet",
)
"""The methods, in the order of their runs."""
MANY_SEEDS = ("a3c", "fine-tune", "knowledge-flow", "progressive")


@dataclass(frozen=True)
class Job:
    """One run."""

    folder: RunFolder
    flags: tuple[str, ...]

    @property
    def state(self) -> str:
        """Its state: done, interrupted or to do."""
        if self.folder.evaluation.exists():
            return "done"
        return "interrupted" if any(self.folder.checkpoints.glob("*.safetensors")) else "to do"


@dataclass(frozen=True)
class Study:
    """Options of the study."""

    what: tyro.conf.Positional[Literal["run", "list"]]
    out: Path = Path("comparison")
    """The folder of the runs: a folder for each method, with one for each game and seed."""
    games: tuple[str, ...] = ("Alien", "ChopperCommand")
    """The games to learn."""
    teachers: str = "zoo:seaquest,zoo:riverraid"
    """Teachers as for `kfrl train`; with the student's shape, which fine-tuning needs."""
    only: tuple[str, ...] = ()
    """Methods to run; default all."""
    seeds: int = 3
    """Seeds of a3c, fine-tune, knowledge-flow and progressive."""
    other_seeds: int = 1
    """Seeds of the other methods."""
    steps: int = 500_000
    """Agent steps of a run in its own game."""
    source_steps: Annotated[int, Ge(1)] | None = None
    """Agent steps in all source games before it, with pathnet and actor-mimic; default: as many as --steps."""
    workers: int = 2
    """Worker processes that play the game."""
    envs_per_worker: int = 16
    """Environments of each worker."""
    lr: float = 7e-4
    """Learning rate of every arm: that of Mnih et al. 2016, with which the zoo's Seaquest teacher was trained. It was
    not tuned for any of the methods."""
    population: int = 8
    """PathNet's population, instead of 64."""
    eval_episodes: int = 30
    """Final games of the student alone."""
    curve_points: int = 10
    """Evaluations of the student alone during a run; they use the workers' cores."""

    def jobs(self) -> Iterator[Job]:
        """All runs, in order."""
        teachers, _ = load_teachers(split_names(self.teachers), RUNS, identify)
        played = tuple(dict.fromkeys(teacher.card.game for teacher in teachers))
        for seed in range(1, max(self.seeds, self.other_seeds) + 1):
            for method in METHODS:
                wanted = self.seeds if method in MANY_SEEDS else self.other_seeds
                if seed <= wanted and (not self.only or method in self.only):
                    for game in map(find_game, self.games):
                        yield self._job(method, game, seed, played)

    def _job(self, method: str, game: Game, seed: int, played: tuple[str, ...]) -> Job:
        folder = self._folder(method, game, seed)
        sources = [Game(name).title for name in played if name != game.name]
        together = len(sources) + 1 if method == "distral" else 1
        return Job(
            folder,
            (
                *("--game", game.title, "--method", method, "--steps", str(self.steps), "--seed", str(seed)),
                *("--workers", str(together * self.workers), "--envs-per-worker", str(self.envs_per_worker)),
                *("--lr", str(self.lr), "--eval-episodes", str(self.eval_episodes), "--run-dir", str(folder.path)),
                *("--curve-points", str(self.curve_points)),
                *self._own_flags(method, self._folder("a3c", game, seed), ",".join(sources)),
            ),
        )

    def _folder(self, method: str, game: Game, seed: int) -> RunFolder:
        return RunFolder(self.out / method / f"{game.file_name}-s{seed}")

    def _own_flags(self, method: str, scratch: RunFolder, sources: str) -> tuple[str, ...]:
        taught = ("--teachers", self.teachers)
        source_steps = self.steps if self.source_steps is None else self.source_steps
        games = len(split_names(sources))
        return {
            "a3c": (),
            "fine-tune": ("--teachers", split_names(self.teachers)[0]),
            "knowledge-flow": taught,
            "progressive": taught,
            "policy-distillation": ("--teachers", str(scratch.student)),
            "actor-mimic": (*taught, "--source-steps", str(source_steps)),
            "distral": ("--source-games", sources),
            "pathnet": (
                *("--source-games", sources, "--source-steps", str(source_steps // max(games, 1))),
                *("--population", str(self.population)),
            ),
        }[method]


def run(job: Job) -> str:
    """Train unless it is done; returns the result as text."""
    if job.state == "done":
        return "done before"
    flags = job.flags
    if job.state == "interrupted":
        flags = ("--resume", str(job.folder.path))
    else:
        # A run that was killed before its first checkpoint cannot be resumed.
        shutil.rmtree(job.folder.path, ignore_errors=True)
    code = _train(flags)
    if code < 0 or code > 128:
        sys.exit(abs(code))
    return "done" if code == 0 else f"FAILED with exit code {code}"


def _train(flags: Sequence[str]) -> int:
    """Run `kfrl train`, which ends by itself on Ctrl-C, with a checkpoint; SIGTERM is passed on to it."""
    child = subprocess.Popen([sys.executable, "-m", "kfrl.cli.main", "train", *flags])
    with noting_signals(lambda number: child.terminate() if number == signal.SIGTERM else None):
        return child.wait()


def main(study: Annotated[Study, tyro.conf.arg(name="")]) -> None:
    """Run or list the study."""
    try:
        jobs = list(study.jobs())
    except UserError as error:
        sys.exit(str(error))
    failed = 0
    for job in jobs:
        result = run(job) if study.what == "run" else job.state
        failed += result.startswith("FAILED")
        print(f"{result}: kfrl train {shlex.join(job.flags)}", flush=True)
    sys.exit(f"{failed} of {len(jobs)} runs failed." if failed else 0)


if __name__ == "__main__":
    main(tyro.cli(Study, description=__doc__))
