"""Finding a teacher by what a user types: a path, the game of an own run, or an agent of the zoo."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kfrl.errors import UserError, unknown
from kfrl.teachers.formats import Card, Teacher, load_agent, read_card

ZOO = Path(__file__).parent / "zoo"
ZOO_PREFIX = "zoo:"
STUDENT_FILE = "student.safetensors"


@dataclass(frozen=True)
class Entry:
    """An agent that a name can mean."""

    reference: str
    """What `--teachers` takes to mean exactly this file."""
    path: Path
    card: Card


def list_teachers(runs: Path) -> list[Entry]:
    """The user's own runs below `runs`, best scores first, then the zoo. Files that cannot be read are left out."""
    own = [_entry(path, str(path)) for path in sorted(runs.glob(f"*/*/*/{STUDENT_FILE}"))]
    zoo = [_entry(path, ZOO_PREFIX + path.stem) for path in sorted(ZOO.glob("*.safetensors"))]
    readable = sorted(
        (entry for entry in own if entry is not None),
        key=lambda entry: -(entry.card.mean_score if entry.card.mean_score is not None else float("inf")),
    )
    scored = [entry for entry in readable if entry.card.mean_score is not None]
    unscored = [entry for entry in readable if entry.card.mean_score is None]
    return scored + unscored + [entry for entry in zoo if entry is not None]


def _entry(path: Path, reference: str) -> Entry | None:
    try:
        return Entry(reference, path, read_card(path))
    except UserError:
        return None


def find_teacher(reference: str, runs: Path) -> Entry:
    """Return what `reference` means: a file, a run's folder, `zoo:NAME`, or a game.

    A game is looked up among the user's own runs first (the best evaluated one), then in the zoo.

    Raises:
        UserError: nothing of that name; the message lists what there is and names the nearest.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        path = path / STUDENT_FILE
        if not path.exists():
            raise UserError(f"{reference} is a folder without a {STUDENT_FILE}: not a run of kfrl.")
    if path.is_file() or path.suffix == ".safetensors" or "/" in reference:
        return Entry(str(path.resolve()), path, read_card(path))
    entries = list_teachers(runs)
    for entry in entries:
        if reference == entry.reference or _folded(reference) == _folded(entry.card.game):
            return entry
    raise unknown(
        "teacher",
        reference,
        {entry.card.game for entry in entries},
        "Give a game from this list, or the path of an agent file; `kfrl teachers list` shows them all.",
    )


def load_teachers(references: Iterable[str], runs: Path) -> tuple[tuple[Teacher, ...], tuple[str, ...]]:
    """Load every teacher; of two for the same game the second is called `<game>-2`, and so on.

    Returns:
        The teachers, and the exact references to find the same files again.
    """
    teachers: list[Teacher] = []
    exact = []
    for reference in references:
        entry = find_teacher(reference, runs)
        loaded = load_agent(entry.path)
        same = sum(teacher.card.game == loaded.card.game for teacher in teachers)
        name = loaded.card.game + (f"-{same + 1}" if same else "")
        teachers.append(replace(loaded, name=name))
        in_zoo = entry.reference.startswith(ZOO_PREFIX)
        exact.append(entry.reference if in_zoo else str(entry.path.resolve()))
    return tuple(teachers), tuple(exact)


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
