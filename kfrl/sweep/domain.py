"""The interface between a sweep and the kind of its runs, games or images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from kfrl.sweep.space import FixedTeacher
    from kfrl.training.session import Session


class Domain(ABC):
    """A kind of run. Its module holds one object of it as `DOMAIN`; importing that module must not load torch."""

    settings: ClassVar[type[DataclassInstance]]
    """The dataclass of a run's settings."""
    subject: ClassVar[str]
    """The name of the setting for the game or the data set."""
    budget: ClassVar[str]
    """The name of the setting for the length of a run, e.g. steps."""
    unit: ClassVar[str]
    """The unit that the rate counts, e.g. steps."""
    compare_command: ClassVar[str]
    """The command that compares the runs."""

    @abstractmethod
    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings that no run can have; checks names, types and ranges.

        Raises:
            UserError: a setting is wrong.
        """

    @abstractmethod
    def processes(self, settings: Mapping[str, Any]) -> int:
        """How many processes of a run compute at the same time."""

    @abstractmethod
    def resolve(self, settings: Mapping[str, Any]) -> None:
        """Look up everything that the settings name.

        Raises:
            UserError: something does not exist, or settings do not fit together.
        """

    @abstractmethod
    def find_teachers(self, name: str) -> list[FixedTeacher]:
        """The teachers that a name in the setting `teachers` stands for now.

        Raises:
            UserError: there is none.
        """

    @abstractmethod
    def start(self, settings: Mapping[str, Any]) -> Session[Any, Any]:
        """Start a run."""

    @abstractmethod
    def resume(self, folder: Path) -> Session[Any, Any]:
        """Resume the run in a folder."""

    @abstractmethod
    def curve(self, folder: Path) -> list[tuple[float, float]]:
        """The points (steps or epochs, objective) of the run in a folder, in order."""

    @abstractmethod
    def scores(self, evaluation: Mapping[str, Any]) -> tuple[float, float | None]:
        """The final score, which tables show, and the final objective, from the content of eval.json."""

    @abstractmethod
    def teacher(self, folder: Path) -> str:
        """The value of the setting `teachers` that refers to the student of the run in a folder."""
