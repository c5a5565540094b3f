"""`kfrl train`: train a student on a game, alone or with teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from agents.config import TrainConfig
from kfrl.cli.run_flags import RunFlags, read_flags

if TYPE_CHECKING:
    from agents.launch import Session
    from kfrl.cli.display import RunDisplay
    from kfrl.training.method import OwnSettings

PROG = "kfrl train"


@dataclass(frozen=True)
class TrainFlags(RunFlags):
    """Train a student on one Atari game, alone or with frozen teachers.

    The result is runs/<game>/<method>/...: the student, its learning curves, and its score over 30 no-op episodes.
    """

    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    @staticmethod
    def method(name: str) -> type[OwnSettings]:
        """The class of a method."""
        from agents.methods import get_method

        return get_method(name)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = read_flags(TrainFlags, PROG, argv)
    from agents.launch import Session

    if flags.dry_run:
        return _try(flags.settings)
    if flags.resume is None:
        return _train(Session.start(flags.settings))
    session = Session.resume(flags.resume)
    if session.checkpoint is None:
        print(f"{flags.resume} was stopped before its first checkpoint; it starts from the beginning.")
    return _train(session)


def _try(config: TrainConfig) -> int:
    """Print the plan and the cost of a run (--dry-run)."""
    from io import StringIO

    from rich.console import Console

    from agents.run import resolve
    from kfrl.cli.display import RunDisplay
    from kfrl.cli.panel import foretell, introduce, view

    display = RunDisplay(Console(), StringIO(), view)
    run = resolve(config)
    plan = introduce(display, run)
    foretell(display, run, plan)
    return 0


def _train(session: Session) -> int:
    from kfrl.cli.display import open_display
    from kfrl.cli.panel import introduce, say_where, view

    run = session.run
    with open_display(run.folder.log, view) as display:
        if session.finished:
            scores = (
                f"Its scores: {run.folder.evaluation}"
                if run.config.eval_episodes
                else "It has played no final games. To play them, set eval_episodes in "
                f"{run.folder.config} to their number and resume it again."
            )
            display.say(f"{run.folder.path} is finished. {scores}")
            return 0
        introduce(display, run)
        say_where(display, run, session.checkpoint)
        session.prepare(display)
        outcome = session.trainer.train()
        place = f"step {outcome.step:,}"
        if outcome.source_steps:
            place += f", and {outcome.source_steps:,} steps in its source games"
        if outcome.failure is not None:
            display.fail(f"{outcome.failure_and_advice(session.resume_command)}\nSaved at {place}.")
            return 1
        if outcome.stopped_by is not None:
            display.say(f"Stopped at {place}; a checkpoint is written.")
            display.say(f"Resume with: {session.resume_command}")
            return 128 + outcome.stopped_by
        try:
            _finish(session, display)
        except KeyboardInterrupt:
            display.say(
                f"Stopped during the final games. Training is done and saved. Play them with: {session.resume_command}"
            )
            return 130
    return 0


def _finish(session: Session, display: RunDisplay) -> None:
    """Play the final games and print the next commands."""
    from kfrl.cli.evaluate import play_games

    run, trainer = session.run, session.trainer
    folder, episodes = run.folder, run.config.eval_episodes
    caveat = trainer.method.caveat(trainer.net)
    if caveat:
        display.say(caveat)
    display.close()
    seed = run.final_seed
    session.finish(lambda policy, title: play_games(policy, run.protocol, episodes, seed, False, title, display.say))
    deployed = sum(parameter.numel() for parameter in session.load_student().parameters())
    display.say(f"\nThe student, alone: {folder.student}, {deployed:,} parameters")
    display.say(f"Curves: {folder.curves}, {folder.metrics.name} beside it, or: tensorboard --logdir {folder.path}")
    display.say(f"Watch it: kfrl eval {folder.path} --video play.mp4")
    display.say(f"Let it teach: kfrl train --game NAME --teachers {run.protocol.game}")
