"""Optional loggers besides `metrics.csv` and TensorBoard: Weights & Biases and MLflow."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from kfrl.config import split_names
from kfrl.errors import UserError, unknown
from kfrl.runs.atomic import write_text

IDENTITIES = "loggers.json"
"""The file in a run's folder with its identity at each logger, with which a resumed run continues there."""
PROJECT = "kfrl"
"""The project or experiment, unless the logger's environment variable names another."""
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


class Logger(Protocol):
    """Logs the rows of a run's metrics."""

    identity: str
    """The run's identity at this logger."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row."""

    def close(self) -> None:
        """Flush."""


def check_loggers(names: str) -> None:
    """Refuse a logger that does not exist or is not installed.

    Args:
        names: Loggers, comma-separated.

    Raises:
        UserError: the message gives the nearest name, or the command that installs it.
    """
    for name in split_names(names):
        if name not in PACKAGES:
            raise unknown("logger", name, PACKAGES, "metrics.csv and TensorBoard's events are always written.")
        if find_spec(name) is None:
            raise UserError(f"--log-to {name} needs a package that is not installed: pip install {PACKAGES[name]}")


class Loggers:
    """The loggers of a run. The first row starts them, so that a run that is only inspected starts none."""

    def __init__(self, names: str, folder: Path, settings: Mapping[str, Any]) -> None:
        """Store the arguments for the start of the loggers.

        Args:
            names: Loggers, comma-separated.
            folder: The run's folder.
            settings: The run's settings, which the loggers display.
        """
        self._names, self._folder, self._settings = split_names(names), folder, _flat(settings)
        self._open: list[Logger] | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row."""
        if self._open is None:
            self._open = self._start()
        for logger in self._open:
            logger.log(step, values)

    def close(self) -> None:
        """Flush the loggers that were started."""
        for logger in self._open or ():
            logger.close()
        self._open = None

    def _start(self) -> list[Logger]:
        """Start a run at each logger, or continue the one that this run has there."""
        if not self._names:
            return []
        path = self._folder / IDENTITIES
        known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
        kinds: dict[str, type[WandB] | type[MLflow]] = {"wandb": WandB, "mlflow": MLflow}
        started: dict[str, Logger] = {
            name: kinds[name](self._folder, self._settings, known.get(name)) for name in self._names
        }
        write_text(path, json.dumps(known | {name: logger.identity for name, logger in started.items()}) + "\n")
        return list(started.values())


class WandB:
    """Weights & Biases; WANDB_MODE=offline keeps everything in the run's folder, for `wandb sync`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], identity: str | None) -> None:
        """Start or resume."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=identity,
            resume="allow" if identity else None,
            dir=folder,
            config=dict(settings),
            # wandb's capture of the output would break the live panel.
            settings=wandb.Settings(console="off"),
        )
        self.identity: str = self._run.id
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row; a resumed run may log a step twice."""
        self._run.log({"global_step": step, **values})

    def close(self) -> None:
        """Upload the remaining rows."""
        self._run.finish()


class MLflow:
    """MLflow; without MLFLOW_TRACKING_URI in ./mlruns, for `mlflow ui`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], identity: str | None) -> None:
        """Start or resume."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        here = (Path.cwd() / "mlruns").as_uri()
        # MLflow's file store is in maintenance mode and raises an error without this variable.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", here))
        if identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            identity = self._client.create_run(experiment, run_name=folder.name).info.run_id
            params = [Param(_name(key), str(value)[:500]) for key, value in settings.items()]
            for start in range(0, len(params), 100):
                self._client.log_batch(identity, params=params[start : start + 100])
        self.identity: str = identity

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self.identity)


def _name(text: str) -> str:
    return re.sub(r"[^\w./ -]", "_", text)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str | None) else str(value)
    return flat
