"""The domain of games for sweeps. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.config import TrainConfig
from envs.games import find_game
from kfrl.config import validated
from kfrl.errors import UserError
from kfrl.runs.folder import RunFolder
from kfrl.runs.metrics import STEP, read_metrics
from kfrl.sweep.domain import Domain
from kfrl.sweep.space import FixedTeacher
from kfrl.training.method import check_settings

STUDENT = "eval/mean_return"


class Games(Domain):
    """Runs of `kfrl train`. They are compared by the student alone, never by returns with teachers' links."""

    settings = TrainConfig
    subject, budget, unit = "game", "steps", "steps"
    compare_command = "kfrl compare"

    def check(self, settings: Mapping[str, Any]) -> None:
        """See `Domain.check`."""
        config = validated(dict(settings), TrainConfig)
        if not config.game:
            raise UserError("The settings have no game. Give one, e.g. `game: Alien`.")
        find_game(config.game)
        if not config.eval_episodes:
            raise UserError("A sweep recognises finished runs by their final games: give eval_episodes of at least 1.")
        if config.methods:
            from agents.methods import get_method, method_names

            get_method(config.method_name).resolve_settings(config, method_names())
            check_settings(config, method_names(), get_method)

    def processes(self, settings: Mapping[str, Any]) -> int:
        """The number of workers; a2c and ppo have one learner."""
        return validated(dict(settings), TrainConfig).shape.workers

    def resolve(self, settings: Mapping[str, Any]) -> None:
        """See `Domain.resolve`."""
        from agents.run import resolve

        resolve(validated(dict(settings), TrainConfig))

    def find_teachers(self, name: str) -> list[FixedTeacher]:
        """See `Domain.find_teachers`."""
        from agents.teachers.store import load_teachers
        from envs.atari import identify
        from kfrl.runs.folder import RUNS

        teachers, exact = load_teachers([name], RUNS, identify)
        return [FixedTeacher(*one) for one in zip(exact, (teacher.sha256 for teacher in teachers), strict=True)]

    def start(self, settings: Mapping[str, Any]) -> Any:
        """Start a run."""
        from agents.launch import Session

        return Session.start(settings)

    def resume(self, folder: Path) -> Any:
        """Resume a run."""
        from agents.launch import Session

        return Session.resume(folder)

    def curve(self, folder: Path) -> list[tuple[float, float]]:
        """The points (steps, score of the student alone)."""
        rows = read_metrics(RunFolder(folder).metrics)
        return [(row[STEP], row[STUDENT]) for row in rows if STUDENT in row]

    def scores(self, evaluation: Mapping[str, Any]) -> tuple[float, float]:
        """The mean raw score of the final games, both as score and as objective."""
        mean = statistics.fmean(evaluation["scores"])
        return mean, mean

    def teacher(self, folder: Path) -> str:
        """The path of the student's file."""
        return str(RunFolder(folder).student)


DOMAIN = Games()
