"""What a sweep has to be told of the runs that it starts; the sweep itself knows neither games nor images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from kfrl.training.session import Session


class Domain(ABC):
    """A kind of run. One object of it stands in a module as `DOMAIN`; importing that module loads no torch."""

    settings: ClassVar[type[DataclassInstance]]
    """What a run's settings are."""
    subject: ClassVar[str]
    """The setting that says what is learned: a game, a data set."""
    budget: ClassVar[str]
    """The setting that says how long."""
    unit: ClassVar[str]
    """What the rate counts."""
    objective: ClassVar[str]
    """What a run's `Status.student` is, in words."""
    score: ClassVar[str]
    """What `scores` are, in words."""
    higher_is_better: ClassVar[bool]
    """Of scores."""
    compare_command: ClassVar[str]
    """What puts the runs side by side."""

    @abstractmethod
    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings that no run can have; looks at names, types and ranges.

        Raises:
            UserError: saying what is wrong.
        """

    @abstractmethod
    def processes(self, settings: Mapping[str, Any]) -> int:
        """How many processes of a run compute at the same time."""

    @abstractmethod
    def resolve(self, settings: Mapping[str, Any]) -> None:
        """Look up everything that the settings name.

        Raises:
            UserError: something is not there, or does not fit together.
        """

    @abstractmethod
    def start(self, settings: Mapping[str, Any]) -> Session[Any, Any]:
        """Begin a run."""

    @abstractmethod
    def resume(self, folder: Path) -> Session[Any, Any]:
        """Go on with one."""

    @abstractmethod
    def curve(self, folder: Path) -> list[tuple[float, float]]:
        """The objective along a run that a folder holds: (steps or epochs, value), in order."""

    @abstractmethod
    def scores(self, evaluation: Mapping[str, Any]) -> tuple[float, float | None]:
        """The final score that tables show, and the objective at the end, out of eval.json."""

    @abstractmethod
    def teacher(self, folder: Path) -> str:
        """What `teachers` takes to mean the student of a run."""
