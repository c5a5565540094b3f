"""`kfrl train`: a game, teachers, and a student that stands alone at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agents.config import TrainConfig
from kfrl.cli.runs import RunFlags, open_run, read_flags

if TYPE_CHECKING:
    from agents.run import Run
    from agents.trainer import Trainer
    from kfrl.cli.display import RunDisplay
    from kfrl.runs.checkpoint import Checkpoint

PROG = "kfrl train"


@dataclass(frozen=True)
class TrainFlags(RunFlags):
    """Train a student on one Atari game, alone or with frozen teachers.

    The result is runs/<game>/<method>/...: the student, its learning curves, and its score over 30 no-op episodes.
    """

    settings: TrainConfig = field(default_factory=TrainConfig)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = read_flags(TrainFlags, PROG, argv)
    from agents.run import reopen, resolve

    return _train(*open_run(flags, PROG, resolve, reopen))


def _train(run: Run, checkpoint: Checkpoint | None) -> int:
    from agents.engines.registry import ENGINES
    from kfrl.cli.display import open_display
    from kfrl.cli.panel import introduce, view

    with open_display(run.folder.log, view) as display:
        if checkpoint is not None and _finished(run, checkpoint):
            scores = (
                f"Its scores: {run.folder.evaluation}"
                if run.config.eval_episodes
                else "It was made without final games; to have them played, write their number (eval_episodes) into "
                f"{run.folder.config} and resume it again."
            )
            display.say(f"{run.folder.path} is finished. {scores}")
            return 0
        introduce(display, run, checkpoint)
        trainer = ENGINES[run.config.algo](run, display, checkpoint)
        outcome = trainer.train()
        resume = f"{PROG} --resume {run.folder.path}"
        place = f"step {outcome.step:,}"
        if outcome.source_steps:
            place += f", and {outcome.source_steps:,} steps in its source games"
        if outcome.failure is not None:
            display.fail(f"{outcome.failure}\nSaved at {place}. Resume with: {resume}")
            return 1
        if outcome.stopped_by is not None:
            display.say(f"Stopped at {place}; a checkpoint is written.")
            display.say(f"Resume with: {resume}")
            return 128 + outcome.stopped_by
        try:
            _evaluate(run, trainer, display)
        except KeyboardInterrupt:
            display.say(f"Stopped before the scores were in. Training is done and saved; play on with: {resume}")
            return 130
    return 0


def _finished(run: Run, checkpoint: Checkpoint) -> bool:
    trained: bool = checkpoint.state["global_step"] >= run.config.steps
    return trained and (run.folder.evaluation.exists() or not run.config.eval_episodes)


def _evaluate(run: Run, trainer: Trainer, display: RunDisplay) -> None:
    """Play the final episodes, save the scores beside the student, say what to type next."""
    from kfrl.cli.evaluate import linked_policy, play_games
    from kfrl.compare.plots import draw_run
    from kfrl.runs.provenance import commit, sha256

    student = trainer.method.export(trainer.net)
    caveat = trainer.method.caveat(trainer.net)
    if caveat:
        display.say(caveat)
    folder, episodes, step = run.folder, run.config.eval_episodes, trainer.step
    display.close()
    if episodes:
        policies = {"student alone": lambda obs: student(obs)[0]}
        linked = linked_policy(run, trainer.net)
        if linked is not None:
            policies["with its teachers' links"] = linked
        results = {
            title: play_games(policy, run.protocol, episodes, 0, False, title, display.say).to_dict()
            for title, policy in policies.items()
        }
        alone, *others = results.values()
        run.save_student(student, step, alone, caveat)
        stamp = {"steps": step, "sha256": sha256(folder.student), "commit": commit()}
        answer = {**stamp, **alone} | ({"with_links": others[0]} if others else {})
        if run.spec.sources:
            answer["source_steps"] = trainer.source_steps
        answer["layer_weights"] = trainer.method.metrics(trainer.net)
        run.folder.write_evaluation(answer)
    draw_run(folder.path, folder.curves)
    deployed = sum(parameter.numel() for parameter in student.parameters())
    display.say(f"\nThe student, alone: {folder.student}, {deployed:,} parameters")
    display.say(f"Curves: {folder.curves}, {folder.metrics.name} beside it, or: tensorboard --logdir {folder.path}")
    display.say(f"Watch it: kfrl eval {folder.path} --video play.mp4")
    display.say(f"Let it teach: kfrl train --game NAME --teachers {run.protocol.game}")
