"""A run in this process, from its settings to its scores: the command line and a user's own script call the same."""

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
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class AnyRun(Protocol):
    """What settings resolve to: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def config(self) -> Any:
        """The settings, resolved."""

    @property
    def folder(self) -> RunFolder:
        """Where the run writes."""


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    folder: Path
    """Where its files are."""
    student: nn.Module
    """The student alone, on the CPU."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """What eval.json holds; empty if the run was stopped or has no final games."""
    stopped_by: int | None = None
    """The signal that stopped it; `resume` goes on."""


R = TypeVar("R", bound=AnyRun)
T = TypeVar("T", bound=Trainer[Any])


class Session(ABC, Generic[R, T]):
    """A run that has a folder: start or resume it, `prepare`, `train`, `finish`."""

    command: ClassVar[str]
    """What a user types to do the same."""
    settings: ClassVar[type[DataclassInstance]]
    """What a run's settings are."""

    @classmethod
    def start(cls, config: DataclassInstance | Mapping[str, Any]) -> Self:
        """Begin a new run: look up what its settings name, and write its config.yaml.

        Args:
            config: The settings, or plain values by name.

        Raises:
            UserError: settings that do not fit together, or a folder that exists. Nothing has been written.
        """
        settings: Any = validated(dict(config) if isinstance(config, Mapping) else asdict(config), cls.settings)
        run = cls.resolve(settings)
        return cls(begin(run, cls.command, named=settings.run_dir is not None) if ranks().first else run)

    @classmethod
    def resume(cls, folder: Path) -> Self:
        """Take up a run at its latest checkpoint, or anew where none was written yet.

        Raises:
            UserError: no run's folder, damaged checkpoints, or something that the run needs is gone.
        """
        run = cls.reopen(folder)
        return cls(run, checkpoint_to_resume(run.folder.checkpoints))

    def __init__(self, run: R, checkpoint: Checkpoint | None = None) -> None:
        """Take up a run whose config.yaml is written, at a checkpoint if there is one."""
        self.run, self.checkpoint = run, checkpoint
        self._trainer: T | None = None

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run."""
        return f"{self.command} --resume {shlex.quote(str(self.run.folder.path))}"

    @property
    def trainer(self) -> T:
        """What trains; there after `prepare`."""
        if self._trainer is None:
            raise RuntimeError("Expected prepare() to have been called.")
        return self._trainer

    def prepare(self, display: Any) -> None:
        """Build the net, from the checkpoint if there is one, and show what happens on `display`."""
        self._trainer = self.build(display)

    @staticmethod
    @abstractmethod
    def resolve(config: Any) -> Any:
        """The run of some settings, with all that they name looked up."""

    @staticmethod
    @abstractmethod
    def reopen(folder: Path) -> Any:
        """The run that a folder holds."""

    @abstractmethod
    def build(self, display: Any) -> T:
        """The trainer of the run."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all is trained and scored; call `prepare` first."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Score the student alone and write eval.json and the curves; returns what eval.json holds."""

    @abstractmethod
    def load_student(self) -> nn.Module:
        """The student that the run has saved."""

    def complete(self, display: Any) -> Result:
        """Train what is left, and score it.

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
            raise TrainingError(f"{outcome.failure}\nThe run is in {folder.path}. Resume it: {self.resume_command}")
        evaluation = {} if outcome.stopped_by is not None else self.finish()
        if "with_links" in {**evaluation, **evaluation.get("others", {})}:
            warnings.warn(
                f"The student of {folder.path} is not independent: its file holds the student alone, "
                "and its score with links needs its teachers.",
                stacklevel=3,
            )
        return Result(folder.path, self.load_student(), evaluation, outcome.stopped_by)


def begin(run: R, command: str, *, named: bool) -> R:
    """Make the folder of a new run, which no other run can be given, and write its config.yaml.

    Args:
        run: Resolved settings.
        command: What trains.
        named: Whether the user chose the folder. One that nobody chose gets a number where another run has it already.

    Returns:
        The run in the folder that it has got.

    Raises:
        UserError: the folder that the user chose exists.
    """
    first, number = run.folder.path, 1
    while not run.folder.make():
        if named:
            raise UserError(
                f"The run folder {first} exists. Give another --run-dir (run_dir), or go on with that run: "
                f"{command} --resume {shlex.quote(str(first))}"
            )
        number += 1
        path = first.with_name(f"{first.name}-{number}")
        run = replace(run, folder=RunFolder(path), config=replace(run.config, run_dir=path))
    run.folder.write_config(run.config)
    return run
