"""A run: what a config resolves to, and the folder that it writes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from agents.config import TrainConfig
from agents.methods import get_method
from agents.methods.base import Method, NetSpec
from envs.atari import action_set, identify
from envs.games import find_game
from envs.protocols import Protocol, get_protocol
from kfrl.atomic import write_text
from kfrl.config import dump_config, load_config
from kfrl.errors import UserError
from kfrl.provenance import commit
from kfrl.teachers.formats import Card, Teacher, save_agent
from kfrl.teachers.store import STUDENT_FILE, load_teachers

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, by name."""

    path: Path

    @property
    def config(self) -> Path:
        """Every setting, resolved; `kfrl train --config` on it runs the same run again."""
        return self.path / "config.yaml"

    @property
    def student(self) -> Path:
        """The student alone."""
        return self.path / STUDENT_FILE

    @property
    def checkpoints(self) -> Path:
        """What `--resume` needs."""
        return self.path / "checkpoint"

    @property
    def metrics(self) -> Path:
        """The learning curves."""
        return self.path / "metrics.csv"

    @property
    def curves(self) -> Path:
        """The same, drawn."""
        return self.path / "curves.png"

    @property
    def evaluation(self) -> Path:
        """The final scores."""
        return self.path / "eval.json"

    @property
    def log(self) -> Path:
        """What was printed."""
        return self.path / "log.txt"

    @classmethod
    def of_run(cls, path: Path) -> RunFolder:
        """The folder of an existing run.

        Raises:
            UserError: there is none.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(
                f"{path} is not the folder of a run: it has no config.yaml. A run's folder looks like "
                "runs/<game>/<method>/<teachers>-s<seed>-<time>."
            )
        return folder


@dataclass(frozen=True)
class Run:
    """A config with everything that it names looked up and loaded. Nothing is written yet."""

    config: TrainConfig
    protocol: Protocol
    spec: NetSpec
    teachers: tuple[Teacher, ...]
    folder: RunFolder

    def method(self) -> Method:
        """A fresh instance of the run's method."""
        return get_method(self.config.method_name)(self.config)

    def card(self, steps: int, net: nn.Module, evaluation: dict[str, Any] | None = None) -> Card:
        """What the student's file says of it."""
        arch: dict[str, Any] = net.arch  # type: ignore[assignment]
        return Card(
            game=self.protocol.game,
            actions=self.spec.actions,
            arch=arch,
            method=self.config.method_name,
            steps=steps,
            seed=self.config.seed,
            teachers=tuple(teacher.name for teacher in self.teachers),
            protocol=self.protocol.to_dict(),
            evaluation=evaluation or {},
            commit=commit(),
        )

    def save_student(self, net: nn.Module, steps: int, evaluation: dict[str, Any] | None = None) -> None:
        """Write the student alone, as a teacher for the next run."""
        save_agent(self.folder.student, net, self.card(steps, net, evaluation))

    def write_config(self) -> None:
        """Write `config.yaml`."""
        write_text(self.folder.config, dump_config(self.config))

    def write_evaluation(self, result: dict[str, Any]) -> None:
        """Write `eval.json`."""
        write_text(self.folder.evaluation, json.dumps(result, indent=1) + "\n")


def resolve(config: TrainConfig) -> Run:
    """Look up the game, the protocol, the method and the teachers.

    Raises:
        UserError: one of them does not exist, or they do not fit together. Nothing has been written.
    """
    if not config.game:
        raise UserError("Which game? Give --game NAME, e.g. --game Alien; `kfrl games` lists them.")
    game = find_game(config.game)
    protocol = get_protocol(config.protocol, game.rom)
    method = get_method(config.method_name)
    method.check_teachers(config.method_name, len(config.teacher_names))
    teachers, exact = load_teachers(config.teacher_names, RUNS, identify)
    config = replace(
        config,
        game=game.title,
        teachers=",".join(exact),
        method=config.method_name,
        lr=config.learning_rate,
    )
    folder = RunFolder(config.run_dir or _default_folder(config, game.rom, teachers))
    config = replace(config, run_dir=folder.path)
    spec = NetSpec(game.rom, action_set(protocol))
    run = Run(config, protocol, spec, teachers, folder)
    try:
        run.method().build(spec, teachers)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The student (convs {config.convs}, hidden {config.hidden}) and its teachers cannot be put together on "
            f"{protocol.frame_stack} x {protocol.screen_size} x {protocol.screen_size} screens: {error}"
        ) from None
    return run


def _default_folder(config: TrainConfig, rom: str, teachers: Sequence[Teacher]) -> Path:
    names = "+".join(teacher.name for teacher in teachers) or "none"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return RUNS / rom / config.method_name / f"{names}-s{config.seed}-{stamp}"


def reopen(path: Path) -> Run:
    """The run that an existing folder holds.

    Raises:
        UserError: not a run's folder, or something that it needs is gone.
    """
    folder = RunFolder.of_run(path)
    return resolve(replace(load_config(folder.config, TrainConfig), run_dir=path))
