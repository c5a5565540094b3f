"""The folder of a run, in every domain, and the search for such folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        """The file of all settings, resolved; `--config` with it repeats the run."""
        return self.path / "config.yaml"

    @property
    def student(self) -> Path:
        """The file of the student alone."""
        return self.path / STUDENT_FILE

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, for `--resume`."""
        return self.path / "checkpoint"

    @property
    def metrics(self) -> Path:
        """The file of the learning curves."""
        return self.path / "metrics.csv"

    @property
    def history(self) -> Path:
        """The file of the reviews, and of the teachers that were linked and removed."""
        return self.path / "history.csv"

    @property
    def curves(self) -> Path:
        """The plot of the learning curves."""
        return self.path / "curves.png"

    @property
    def evaluation(self) -> Path:
        """The file of the final scores."""
        return self.path / "eval.json"

    @property
    def log(self) -> Path:
        """The file of the printed lines."""
        return self.path / "log.txt"

    def make(self) -> bool:
        """Make the folder; False if it exists already."""
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
            UserError: this version does not accept them; the message names the version that started the run.
        """
        with self.naming_version():
            return load_config(self.config, kind)

    @contextmanager
    def naming_version(self) -> Iterator[None]:
        """Add to an error about the run's settings which version started the run."""
        try:
            yield
        except UserError as error:
            # Imported here, because checkpoints need torch, which a sweep's own processes do not load.
            from kfrl.runs.checkpoint import this_version, version_of

            raise UserError(
                f"{error} If nobody has edited that file, another version started the run "
                f"({version_of(self.checkpoints)}; this one is {this_version()}): resume with that version."
            ) from None

    def write_evaluation(self, result: Mapping[str, Any]) -> None:
        """Write the final scores."""
        write_text(self.evaluation, json.dumps(result, indent=1) + "\n")

    def source(self, phase: int) -> Path:
        """The folder with the learning curves of a phase of source games."""
        return self.path / f"source-{phase + 1}"

    @classmethod
    def of_run(cls, path: Path) -> RunFolder:
        """The folder of an existing run.

        Raises:
            UserError: the folder is not that of a run.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(
                f"{path} is not the folder of a run: it has no config.yaml. A run's folder looks like "
                "runs/<game or data>/<method>/<teachers>-s<seed>-<time>."
            )
        return folder

    def check_finished(self, resume: str) -> None:
        """Refuse a folder that lacks a file of a finished run.

        Args:
            resume: The command that resumes a run, without its folder.

        Raises:
            UserError: the message says what is missing.
        """
        if not self.path.is_dir():
            raise UserError("not a folder")
        if not any(self.path.iterdir()):
            raise UserError("empty")
        for file, meaning in (
            (self.config, "not the folder of a run"),
            (self.evaluation, f"unfinished or never evaluated; finish it: {resume} {self.path}"),
            (self.student, "its student is missing"),
            (self.metrics, "its learning curve is missing"),
        ):
            if not file.is_file():
                raise UserError(f"no {file.name}: {meaning}")


@dataclass(frozen=True)
class Skipped:
    """A folder that a comparison leaves out."""

    path: Path
    reason: str


def left_out_notes(records: Sequence[object], skipped: Sequence[Skipped]) -> list[str]:
    """A note for each folder that a comparison of `records` leaves out.

    Raises:
        UserError: there are no records.
    """
    notes = [f"Left out: {entry.path} ({entry.reason.rstrip('.')})." for entry in skipped]
    if not records:
        raise UserError(" ".join(["No run is left to compare.", *notes]))
    return notes


def find_runs(arguments: Iterable[str]) -> tuple[list[tuple[Path, str | None]], list[Skipped]]:
    """The folders of all runs in the arguments, each once, with the name that the user gave the arm, or None.

    Args:
        arguments: Folders of runs, folders that contain such folders at any depth, or `name=folder`, where `name` is
            the arm's name for all runs found there.

    Raises:
        UserError: a folder does not exist or cannot be read, or a run has two names.
    """
    found: dict[Path, tuple[Path, str | None]] = {}
    skipped = []
    for argument in arguments:
        group, root = _split(argument)
        try:
            inside = list(_candidates(root, set()))
        except OSError as error:
            raise UserError(f"Could not read the folder {root}: {error}.") from None
        if not inside:
            skipped.append(Skipped(root, "contains no run"))
        for path in inside:
            first, known = found.setdefault(path.resolve(), (path, group))
            if None not in (known, group) and known != group:
                raise UserError(f"{path} cannot be in two arms, {known!r} and {group!r}. Give it once.")
            found[path.resolve()] = first, known or group
    return list(found.values()), skipped


def collect(arguments: Iterable[str], read: Callable[[Path, str | None], R]) -> tuple[list[R], list[Skipped]]:
    """Read every run that `find_runs` finds; incomplete runs are returned as skipped.

    Args:
        arguments: See `find_runs`.
        read: (folder, name of the arm or None) -> the record of a run; raises UserError for an incomplete run.

    Raises:
        UserError: see `find_runs`.
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
    """Folders with a file of a run; also files and empty folders, so that the user is told why they are left out."""
    if not path.is_dir():
        yield path
        return
    if path.resolve() in entered:  # already, through a symbolic link
        return
    entered.add(path.resolve())
    folder = RunFolder(path)
    if any(file.exists() for file in (folder.config, folder.evaluation, folder.student, folder.metrics)):
        yield path
        return
    inside = sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=_links_last)
    below = [run for entry in inside if entry.is_dir() for run in _candidates(entry, entered)]
    left = not inside or folder.checkpoints.exists() or folder.log.exists()
    if below:
        yield from below
    elif left:
        yield path


def _links_last(entry: Path) -> tuple[bool, str]:
    """Sort key: symbolic links last, so that a run is found by its own folder before a link to it."""
    return entry.is_symlink(), entry.name
