"""`kfrl train`: a game, teachers, and a student that stands alone at the end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from agents.config import TrainConfig
from kfrl.config import load_config, validated
from kfrl.errors import UserError

if TYPE_CHECKING:
    from agents.runs import Run
    from kfrl.checkpoint import Checkpoint


@dataclass(frozen=True)
class TrainFlags:
    """Train a student on one Atari game, alone or with frozen teachers.

    The result is runs/<game>/<method>/...: the student, its learning curves, and its score over 30 no-op episodes.
    """

    config: Path | None = None
    """A YAML file of settings; flags override it. Every run writes one, config.yaml."""
    resume: Path | None = None
    """The folder of a run to go on with, with its own settings."""
    settings: TrainConfig = field(default_factory=TrainConfig)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = _parse(argv)
    from agents.runs import reopen, resolve
    from kfrl.checkpoint import latest_checkpoint

    if flags.resume is not None:
        run = reopen(flags.resume)
        return _train(run, latest_checkpoint(run.folder.checkpoints))
    settings = validated(asdict(flags.settings), TrainConfig)
    run = resolve(settings)
    if run.folder.path.exists():
        raise UserError(
            f"The run folder {run.folder.path} exists. Give another --run-dir, or go on with that run: "
            f"kfrl train --resume {run.folder.path}"
        )
    run.write_config()
    return _train(run, None)


def _parse(argv: Sequence[str]) -> TrainFlags:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    early, others = first.parse_known_args(list(argv))
    if early.resume is not None and (others or early.config) and "--help" not in others:
        raise UserError(
            "--resume goes on with a run's own settings and takes no other flag, "
            f"got {' '.join(others) or '--config'}."
        )
    settings = TrainConfig() if early.config is None else load_config(early.config, TrainConfig)
    return tyro.cli(
        TrainFlags,
        prog="kfrl train",
        args=list(argv),
        default=TrainFlags(settings=settings),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )


def _train(run: Run, checkpoint: Checkpoint | None) -> int:
    from agents.a3c.launcher import Launcher
    from kfrl.cli.panel import open_display

    with open_display(run.folder.log) as display:
        display.introduce(run, checkpoint)
        launcher = Launcher(run, display, checkpoint)
        outcome = launcher.train()
        resume = f"kfrl train --resume {run.folder.path}"
        if outcome.failure is not None:
            display.fail(f"{outcome.failure}\nSaved at step {outcome.step:,}. Resume with: {resume}")
            return 1
        if outcome.stopped_by is not None:
            display.say(f"Stopped at step {outcome.step:,}; a checkpoint is written.")
            display.say(f"Resume with: {resume}")
            return 128 + outcome.stopped_by
        _evaluate(run, launcher, outcome.step, display)
    return 0
