"""A classifier's run as a function: start or resume, train, and score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kfrl.compare.plots import draw_run
from kfrl.supervised.classifiers import load_classifier
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.run import Run, reopen, resolve
from kfrl.supervised.trainer import Trainer
from kfrl.training import session
from kfrl.training.ranks import ranks
from kfrl.training.session import Result, Silent
from kfrl.training.trainer import Display


class Session(session.Session[Run, Trainer]):
    """A classifier's run in this process."""

    command = "kfrl supervised train"
    settings = SupervisedConfig

    @staticmethod
    def resolve(config: SupervisedConfig) -> Run:
        """See `kfrl.training.session.Session.resolve`."""
        return resolve(config)

    @staticmethod
    def reopen(folder: Path) -> Run:
        """See `kfrl.training.session.Session.reopen`."""
        return reopen(folder)

    def build(self, display: Display) -> Trainer:
        """The trainer of the run."""
        return Trainer(self.run, display, self.checkpoint)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done and eval.json is written."""
        return self.trainer.finished and self.run.folder.evaluation.exists()

    def load_student(self) -> nn.Module:
        """The student that the run has saved."""
        return load_classifier(self.run.folder.student).net

    def finish(self) -> dict[str, Any]:
        """Count the student's errors on the test images, write eval.json, and draw the curves."""
        result = self.trainer.finish()
        if ranks().first:
            draw_run(self.run.folder.path, self.run.folder.curves)
        return result


def train(config: SupervisedConfig | Mapping[str, Any], display: Display | None = None) -> Result:
    """Train a classifier and score it: all that `kfrl supervised train` does, except flags and printing.

    Works in any thread. On the main one, Ctrl-C and SIGTERM end the run between two updates, with a checkpoint.

    Args:
        config: The settings, or plain values by name: `{"data": "digits", "epochs": 3}`.
        display: Gets `update(status)` and `say(text)` during the run.

    Raises:
        UserError: settings that cannot be used. Nothing has been written.
        TrainingError: training failed; the run's folder has what was saved.
    """
    return Session.start(config).complete(display or Silent())


def resume(folder: Path | str, display: Display | None = None) -> Result:
    """Continue a run from its latest checkpoint, and score it; a finished run is only read.

    Raises:
        UserError: not a run's folder, or something that the run needs is missing.
        TrainingError: training failed.
    """
    return Session.resume(Path(folder)).complete(display or Silent())
