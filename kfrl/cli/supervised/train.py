"""`kfrl supervised train`: train an image classifier, alone or with frozen teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from kfrl.cli.run_flags import RunFlags, read_flags
from kfrl.supervised.config import SupervisedConfig

if TYPE_CHECKING:
    from kfrl.cli.display import RunDisplay, View
    from kfrl.supervised.launch import Session
    from kfrl.supervised.run import Run
    from kfrl.supervised.trainer import ImageStatus, Trainer
    from kfrl.training.method import OwnSettings

PROG = "kfrl supervised train"
CHECKPOINTS_ON_DISK = 3
"""While one checkpoint replaces another."""
BYTES_OF_PARAMETER = 12.0
"""In a checkpoint: the parameter and at most two moments, in float32."""


@dataclass(frozen=True)
class TrainFlags(RunFlags):
    """Train an image classifier, alone or with frozen teachers.

    The result is in runs/<data>/<method>/...: the student, its learning curves, and its errors on the test images.
    """

    settings: Annotated[SupervisedConfig, tyro.conf.arg(name="")] = field(default_factory=SupervisedConfig)

    @staticmethod
    def method(name: str) -> type[OwnSettings]:
        """The class of a method."""
        from kfrl.supervised.methods import get_method

        return get_method(name)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = read_flags(TrainFlags, PROG, argv)
    from kfrl.supervised.launch import Session

    if flags.dry_run:
        return _try(flags.settings)
    return _train(Session.start(flags.settings) if flags.resume is None else Session.resume(flags.resume))


def _try(config: SupervisedConfig) -> int:
    """Print what a run would do."""
    from io import StringIO

    from rich.console import Console

    from kfrl.cli.display import RunDisplay, duration
    from kfrl.machine import peak_memory, size
    from kfrl.supervised.plan import expected_rate, rehearsal
    from kfrl.supervised.run import resolve

    display = RunDisplay(Console(), StringIO(), view)
    run = resolve(config)
    with rehearsal(run, display) as trainer:
        _introduce(display, run, trainer)
        rate = expected_rate(trainer)
        updates = trainer.epochs * len(trainer.images)
        seconds = updates * config.batch_size / rate
        display.say(f"memory: {size(peak_memory())} were in use after a few updates")
        display.say(
            f"rate: about {rate:,.0f} images a second, measured now; {trainer.epochs} epochs take {duration(seconds)} "
            "at that rate, without validation"
        )
    display.say(f"Nothing was written. The folder would be {run.folder.path}")
    return 0


def _train(session: Session) -> int:
    from kfrl.cli.display import open_display
    from kfrl.training.ranks import ranks

    if not ranks().first:
        return _follow(session)
    folder = session.run.folder
    with open_display(folder.log, view) as display:
        session.prepare(display)
        if session.finished:
            display.say(f"{folder.path} is finished. Its scores: {folder.evaluation}")
            return 0
        _introduce(display, session.run, session.trainer)
        if session.checkpoint is not None:
            step = f"epoch {session.checkpoint.state['epoch'] + 1}"
            display.say(f"Going on from {step} ({session.checkpoint.path.name}).")
        display.say(f"Writing to {folder.path}")
        outcome = session.trainer.train()
        display.close()
        if outcome.failure is not None:
            display.fail(outcome.failure_and_advice(session.resume_command))
            return 1
        if outcome.stopped_by is not None:
            display.say(f"Stopped in epoch {outcome.step + 1}; a checkpoint is written.")
            display.say(f"Resume with: {session.resume_command}")
            return 128 + outcome.stopped_by
        _conclude(display, session.run, session.finish())
    return 0


def _follow(session: Session) -> int:
    """Run a torchrun process other than the first: it trains, but shows and writes nothing."""
    from kfrl.training.session import Silent

    session.prepare(Silent())
    if session.finished:
        return 0
    outcome = session.trainer.train()
    if outcome.failure is not None:
        return 1
    if outcome.stopped_by is not None:
        return 128 + outcome.stopped_by
    session.finish()
    return 0


def _introduce(display: RunDisplay, run: Run, trainer: Trainer) -> None:
    from kfrl.cli.display import link_table
    from kfrl.flow import KnowledgeFlow
    from kfrl.machine import warnings
    from kfrl.nets.carried import carried

    config, data = run.config, run.data
    taught = f" · {', '.join(f'teacher {teacher.name}' for teacher in run.teachers)}" if run.teachers else ""
    display.title = f"{data.name} · {config.label}{taught}"
    display.say(display.title, "bold")
    shape = "x".join(map(str, data.shape))
    display.say(
        f"{data.title}: {len(run.train):,} images for training, {len(run.validation):,} for validation, "
        f"{len(data.test):,} for the test, {shape}, {len(data.classes)} classes; augmentation: {config.augment}"
    )
    for note in data.notes:
        display.say(f"Note: {note}", "yellow")
    for line in _teacher_lines(run):
        display.say(line)
    parameters = sum(parameter.numel() for parameter in trainer.method.export(trainer.net).parameters())
    stages = ", ".join(f"{stage.name} {stage.epochs}" for stage in trainer.stages)
    display.say(
        f"student {config.net}, {parameters:,} parameters; epochs: {stages}; {config.optimizer}, learning rate "
        f"{config.lr:g} ({config.schedule}), batch {config.batch_size}, on {config.device}"
    )
    if isinstance(trainer.net, KnowledgeFlow):
        display.say(link_table(trainer.net))
    parts = {teacher.name: teacher.net for teacher in run.teachers}
    taken = carried(trainer.net, parts) if trainer.updates == 0 else []
    for line in (["student:"] if taken else []) + [f"  {one}" for one in taken]:
        display.say(line)
    for warning in warnings(run.folder.path, shared=0.0, written=CHECKPOINTS_ON_DISK * BYTES_OF_PARAMETER * parameters):
        display.say(f"Warning: {warning}", "yellow")


def _teacher_lines(run: Run) -> Iterator[str]:
    for teacher in run.teachers:
        adapted = f"; images {', '.join(teacher.adapted)}" if teacher.adapted else ""
        score = teacher.card.validation_accuracy
        known = "" if score is None else f", {100 * score:.2f} % right on its own validation images"
        yield f"teacher {teacher.name}: {teacher.card.net}, {len(teacher.card.classes)} classes{known}{adapted}"


def view(status: ImageStatus) -> View:
    """The part of a status that is shown."""
    from kfrl.cli.display import View, duration, p_of

    facts = [
        ("epoch", f"{status.done:.2f} of {status.total} ({status.part})"),
        ("rate", f"{status.rate:,.0f} images/s"),
        ("ETA", duration(status.eta_sec)),
        ("losses", ", ".join(f"{name} {value:.4f}" for name, value in status.losses.items()) or "..."),
        ("student alone", "..." if status.student is None else f"{100 * status.student:.2f} % on validation"),
    ]
    if status.best is not None:
        facts.append(("best", f"{100 * status.best:.2f} %"))
    return View(status.done, status.total, facts, p_of(status.metrics))


def _conclude(display: RunDisplay, run: Run, result: dict[str, Any]) -> None:
    folder, test = run.folder, result["test"]
    display.say(
        f"\nTest error of the student, alone: {test['error_percent']:.2f} % "
        f"({test['images'] - test['correct']:,} of {test['images']:,} images), kept from epoch {result['kept_epoch']}"
    )
    for name, other in result["others"].items():
        display.say(f"{name}: {other['error_percent']:.2f} %")
    if "with_links" in result["others"]:
        at = getattr(run.method().own, "independence_at", None)
        # At 1 p is 1 only after the last update.
        forced = at is not None and at < 1.0
        display.say(
            "Warning: this student is not independent. Its file holds the student alone, which has the first of these "
            f"errors; the second needs its teachers. {'--keep last' if forced else '--independence-at 0.4'} gives one "
            "that is independent of them.",
            "bold red",
        )
    display.say(f"The student: {folder.student}")
    display.say(f"Curves: {folder.curves}, {folder.metrics.name} beside it, or: tensorboard --logdir {folder.path}")
    display.say(f"Use it as a teacher: kfrl supervised train --data NAME --teachers {folder.path}")
