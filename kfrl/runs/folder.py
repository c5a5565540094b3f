"""The folder that a run writes, whatever was trained, and finding such folders again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kfrl.config import dump_config, load_config
from kfrl.errors import UserError
from kfrl.runs.atomic import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RUNS = Path("runs")
STUDENT_FILE = "student.safetensors"

R = TypeVar("R")
C = TypeVar("C", bound="DataclassInstance")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, by name."""

    path: Path

    @property
    def config(self) -> Path:
        """Every setting, resolved; `--config` on it runs the same run again."""
        return self.path / "config.yaml"

    @property
    def student(self) -> Path:
        """The student alone."""
        return self.path / STUDENT_FILE

    @property
    def checkpoints(self) -> Path:
        """What `--resume` needs."""
        return self.path / "checkpoint"

    @property
    def metrics(self) -> Path:
        """The learning curves."""
        return self.path / "metrics.csv"

    @property
    def history(self) -> Path:
        """What changed along the way: teachers that came and went."""
        return self.path / "history.csv"

    @property
    def curves(self) -> Path:
        """The same, drawn."""
        return self.path / "curves.png"

    @property
    def evaluation(self) -> Path:
        """The final scores."""
        return self.path / "eval.json"

    @property
    def log(self) -> Path:
        """The lines that were printed."""
        return self.path / "log.txt"

    def make(self) -> bool:
        """Make the folder; False where it is there already, whoever made it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.mkdir()
        except FileExistsError:
            return False
        return True

    def write_config(self, config: DataclassInstance) -> None:
        """Write the settings."""
        write_text(self.config, dump_config(config))

    def read_config(self, kind: type[C]) -> C:
        """The settings of the run.

        Raises:
            UserError: they are not what this version knows; the message names the version that began the run.
        """
        with self.naming_version():
            return load_config(self.config, kind)

    @contextmanager
    def naming_version(self) -> Iterator[None]:
        """Add to an error about the run's settings which version began the run."""
        try:
            yield
        except UserError as error:
            # Checkpoints need torch, which a sweep's own processes do without.
            from kfrl.runs.checkpoint import this_version, version_of

            raise UserError(
                f"{error} If nobody has edited that file, another version began the run "
                f"({version_of(self.checkpoints)}; this one is {this_version()}): go on with that version."
            ) from None

    def write_evaluation(self, result: Mapping[str, Any]) -> None:
        """Write the final scores."""
        write_text(self.evaluation, json.dumps(result, indent=1) + "\n")

    def source(self, phase: int) -> Path:
        """Where a phase of source games has its learning curves."""
        return self.path / f"source-{phase + 1}"

    @classmethod
    def of_run(cls, path: Path) -> RunFolder:
        """The folder of an existing run.

        Raises:
            UserError: there is none.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(
                f"{path} is not the folder of a run: it has no config.yaml. A run's folder looks like "
                "runs/<game or data>/<method>/<teachers>-s<seed>-<time>."
            )
        return folder

    def check_finished(self, resume: str) -> None:
        """Refuse a folder that lacks something of a finished run.

        Args:
            resume: The command that goes on with a run, without its folder.

        Raises:
            UserError: saying what is missing.
        """
        if not self.path.is_dir():
            raise UserError("not a folder")
        if not any(self.path.iterdir()):
            raise UserError("empty")
        for file, meaning in (
            (self.config, "not the folder of a run"),
            (self.evaluation, f"unfinished or never evaluated; finish it: {resume} {self.path}"),
            (self.student, "its student is gone"),
            (self.metrics, "its learning curve is gone"),
        ):
            if not file.is_file():
                raise UserError(f"no {file.name}: {meaning}")


@dataclass(frozen=True)
class Skipped:
    """A folder that is not part of a comparison."""

    path: Path
    reason: str


def find_runs(arguments: Iterable[str]) -> tuple[list[tuple[Path, str | None]], list[Skipped]]:
    """The folders of all runs that the arguments mean, each once, with the name that the user gave their arm.

    Args:
        arguments: Folders of runs, folders that hold such folders at any depth, or `name=folder`, where `name` is
            what to call the arm of all runs found there.

    Raises:
        UserError: a folder that does not exist or cannot be looked into, or one run under two names.
    """
    found: dict[Path, tuple[Path, str | None]] = {}
    skipped = []
    for argument in arguments:
        group, root = _split(argument)
        try:
            inside = list(_candidates(root, set()))
        except OSError as error:
            raise UserError(f"Could not look into {root}: {error}.") from None
        if not inside:
            skipped.append(Skipped(root, "holds no run"))
        for path in inside:
            first, known = found.setdefault(path.resolve(), (path, group))
            if None not in (known, group) and known != group:
                raise UserError(f"{path} cannot be of two arms, {known!r} and {group!r}. Name it once.")
            found[path.resolve()] = first, known or group
    return list(found.values()), skipped


def collect(arguments: Iterable[str], read: Callable[[Path, str | None], R]) -> tuple[list[R], list[Skipped]]:
    """Read every run that the arguments of `find_runs` mean; a folder that is not whole is named and left out.

    Args:
        arguments: See `find_runs`.
        read: Reads the run in a folder, given the name of its arm; raises UserError where it is not whole.

    Raises:
        UserError: as `find_runs`.
    """
    found, skipped = find_runs(arguments)
    records = []
    for path, group in found:
        try:
            records.append(read(path, group))
        except UserError as error:
            skipped.append(Skipped(path, str(error)))
    return records, skipped


def _split(argument: str) -> tuple[str | None, Path]:
    group, equals, folder = argument.partition("=")
    named = bool(group and equals) and not Path(argument).exists()
    path = Path(folder if named else argument)
    if not path.exists():
        raise UserError(f"There is no folder {path}.")
    return group if named else None, path


def _candidates(path: Path, entered: set[Path]) -> Iterator[Path]:
    """Folders that hold a file of a run, and what is given by name or empty, so that the user hears of it."""
    if not path.is_dir():
        yield path
        return
    if path.resolve() in entered:  # by a link
        return
    entered.add(path.resolve())
    folder = RunFolder(path)
    if any(file.exists() for file in (folder.config, folder.evaluation, folder.student, folder.metrics)):
        yield path
        return
    inside = sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=_links_last)
    below = [run for entry in inside if entry.is_dir() for run in _candidates(entry, entered)]
    left = not inside or folder.checkpoints.exists() or folder.log.exists()
    yield from below or [path] * left


def _links_last(entry: Path) -> tuple[bool, str]:
    """A run is called by its own folder, not by a link to it."""
    return entry.is_symlink(), entry.name
