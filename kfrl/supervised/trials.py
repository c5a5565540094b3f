"""Classifiers' runs as a domain of sweeps. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfrl.config import validated
from kfrl.errors import UserError
from kfrl.runs.folder import RunFolder
from kfrl.runs.metrics import read_metrics
from kfrl.supervised.config import SupervisedConfig, check_used
from kfrl.sweep.domain import Domain
from kfrl.sweep.space import FixedTeacher
from kfrl.training.method import check_settings

VALIDATION, EPOCH = "val/accuracy", "charts/epoch"


class ImageDomain(Domain):
    """Runs of `kfrl supervised train`. They are chosen on validation images; test images are only reported."""

    settings = SupervisedConfig
    subject, budget, unit = "data", "epochs", "images"
    compare_command = "kfrl supervised compare"

    def check(self, settings: Mapping[str, Any]) -> None:
        """See `Domain.check`."""
        config = validated(dict(settings), SupervisedConfig)
        if not config.data:
            raise UserError("Which images? Give settings a data set, e.g. `data: mnist`.")
        check_used(config)
        if config.methods:
            from kfrl.supervised.methods import get_method, method_names

            get_method(config.method_name).resolve_settings(config, method_names())
            check_settings(config, method_names(), get_method)

    def processes(self, settings: Mapping[str, Any]) -> int:
        """One process."""
        return 1

    def resolve(self, settings: Mapping[str, Any]) -> None:
        """See `Domain.resolve`."""
        from kfrl.supervised.run import resolve

        resolve(validated(dict(settings), SupervisedConfig))

    def find_teachers(self, name: str) -> list[FixedTeacher]:
        """See `Domain.find_teachers`."""
        from kfrl.runs.folder import RUNS
        from kfrl.supervised.teachers import load_classifiers

        return [FixedTeacher(str(one.path.resolve()), one.sha256) for one in load_classifiers([name], RUNS)]

    def start(self, settings: Mapping[str, Any]) -> Any:
        """Start a run."""
        from kfrl.supervised.launch import Session

        return Session.start(settings)

    def resume(self, folder: Path) -> Any:
        """Continue a run."""
        from kfrl.supervised.launch import Session

        return Session.resume(folder)

    def curve(self, folder: Path) -> list[tuple[float, float]]:
        """Epochs and the accuracy on validation images."""
        rows = read_metrics(RunFolder(folder).metrics)
        return [(row[EPOCH], row[VALIDATION]) for row in rows if VALIDATION in row and EPOCH in row]

    def scores(self, evaluation: Mapping[str, Any]) -> tuple[float, float | None]:
        """The test error of the kept student, and its accuracy on validation images if there were any."""
        return float(evaluation["test"]["error_percent"]), evaluation["validation_accuracy"]

    def teacher(self, folder: Path) -> str:
        """The path of the run's folder."""
        return str(folder)


DOMAIN = ImageDomain()
