"""A run on images as a function: started or resumed, trained, and scored."""

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
    """A run on images."""

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
        """The loop of epochs."""
        return Trainer(self.run, display, self.checkpoint)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done and the test images are counted."""
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
    """Train a classifier and score it: all that `kfrl supervised train` does but flags and printing.

    Works in any thread. On the main one, Ctrl-C and SIGTERM end the run between two updates, with a checkpoint.

    Args:
        config: The settings, or plain values by name: `{"data": "digits", "epochs": 3}`.
        display: Gets `update(status)` and `say(text)` along the way.

    Raises:
        UserError: settings that cannot be used. Nothing has been written.
        TrainingError: training failed; the run's folder has what was saved.
    """
    return Session.start(config).complete(display or Silent())


def resume(folder: Path | str, display: Display | None = None) -> Result:
    """Go on with a run from its latest checkpoint, and score it; one that is finished is only read.

    Raises:
        UserError: no run's folder, or something that it needs is gone.
        TrainingError: training failed.
    """
    return Session.resume(Path(folder)).complete(display or Silent())
