"""A run in this process, from its settings to its scores, for the command line and for users' scripts."""

from __future__ import annotations

import json
import shlex
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from torch import nn
from typing_extensions import Self

from kfrl.config import validated
from kfrl.errors import UserError
from kfrl.runs.checkpoint import Checkpoint, checkpoint_to_resume
from kfrl.runs.folder import RunFolder
from kfrl.training.ranks import ranks
from kfrl.training.trainer import Trainer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class TrainingError(RuntimeError):
    """Training ended early; the message says why, and how to resume the run."""


class Silent:
    """A display that shows nothing."""

    def update(self, status: Any) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Print nothing."""


class AnyRun(Protocol):
    """A run of either domain, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def config(self) -> Any:
        """The settings, resolved."""

    @property
    def folder(self) -> RunFolder:
        """The folder that the run writes to."""


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    folder: Path
    """The folder of its files."""
    student: nn.Module
    """The student alone, on the CPU."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The content of eval.json; empty if the run was stopped or has no final games."""
    stopped_by: int | None = None
    """The signal that stopped it; `resume` continues it."""


R = TypeVar("R", bound=AnyRun)
T = TypeVar("T", bound=Trainer[Any])


class Session(ABC, Generic[R, T]):
    """Base class of the sessions of games and of images: start or resume a run, `prepare`, `train`, `finish`."""

    command: ClassVar[str]
    """The command that does the same."""
    settings: ClassVar[type[DataclassInstance]]
    """The dataclass of a run's settings."""

    @classmethod
    def start(cls, config: DataclassInstance | Mapping[str, Any]) -> Self:
        """Start a new run: look up everything that its settings name, and write its config.yaml.

        Args:
            config: The settings, or plain values by name.

        Raises:
            UserError: settings do not fit together, or the folder exists. Nothing has been written.
        """
        settings: Any = validated(dict(config) if isinstance(config, Mapping) else asdict(config), cls.settings)
        run = cls.resolve(settings)
        return cls(begin(run, cls.command, named=settings.run_dir is not None) if ranks().first else run)

    @classmethod
    def resume(cls, folder: Path) -> Self:
        """Resume a run from its latest checkpoint, or from the beginning if it has none.

        Raises:
            UserError: the folder is not that of a run, all checkpoints are damaged, or a file that it needs is missing.
        """
        run = cls.reopen(folder)
        return cls(run, checkpoint_to_resume(run.folder.checkpoints))

    def __init__(self, run: R, checkpoint: Checkpoint | None = None) -> None:
        """Open a run whose config.yaml is written, at a checkpoint if there is one."""
        self.run, self.checkpoint = run, checkpoint
        self._trainer: T | None = None

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        return f"{self.command} --resume {shlex.quote(str(self.run.folder.path))}"

    @property
    def trainer(self) -> T:
        """The trainer, available after `prepare`."""
        if self._trainer is None:
            raise RuntimeError("The session has no trainer yet. Call prepare() first.")
        return self._trainer

    def prepare(self, display: Any) -> None:
        """Build the trainer, from the checkpoint if there is one; it shows its status on `display`."""
        self._trainer = self.build(display)

    @staticmethod
    @abstractmethod
    def resolve(config: Any) -> Any:
        """Make a run from settings: look up everything that they name."""

    @staticmethod
    @abstractmethod
    def reopen(folder: Path) -> Any:
        """Read the run in a folder."""

    @abstractmethod
    def build(self, display: Any) -> T:
        """Build the trainer of the run."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the run is trained and scored; call `prepare` first."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Score the student alone and write eval.json and the curves; returns the content of eval.json."""

    @abstractmethod
    def load_student(self) -> nn.Module:
        """The student that the run has saved."""

    def complete(self, display: Any) -> Result:
        """Train the rest of the run, and score the student.

        Raises:
            TrainingError: training failed.
        """
        folder = self.run.folder
        self.prepare(display)
        if self.finished:
            saved = json.loads(folder.evaluation.read_text()) if folder.evaluation.exists() else {}
            return Result(folder.path, self.load_student(), saved)
        outcome = self.trainer.train()
        if outcome.failure is not None:
            raise TrainingError(f"{outcome.failure_and_advice(self.resume_command)}\nThe run is in {folder.path}.")
        evaluation = {} if outcome.stopped_by is not None else self.finish()
        if "with_links" in {**evaluation, **evaluation.get("others", {})}:
            warnings.warn(
                f"The student of {folder.path} is not independent: its file holds the student alone, "
                "and its score with links needs its teachers.",
                stacklevel=3,
            )
        return Result(folder.path, self.load_student(), evaluation, outcome.stopped_by)


def begin(run: R, command: str, *, named: bool) -> R:
    """Make the folder of a new run and write its config.yaml. No two runs get the same folder.

    Args:
        run: Resolved settings.
        command: The training command, for the message.
        named: Whether the user chose the folder. If not, and it exists, a number is appended to its name.

    Returns:
        The run, in its folder.

    Raises:
        UserError: the folder that the user chose exists.
    """
    first, number = run.folder.path, 1
    while not run.folder.make():
        if named:
            raise UserError(
                f"The run folder {first} exists. Give another --run-dir (run_dir), or continue that run: "
                f"{command} --resume {shlex.quote(str(first))}"
            )
        number += 1
        path = first.with_name(f"{first.name}-{number}")
        run = replace(run, folder=RunFolder(path), config=replace(run.config, run_dir=path))
    run.folder.write_config(run.config)
    return run
