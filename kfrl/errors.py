"""Errors in the user's input: shown as a sentence without traceback, with exit code 2."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class UserError(Exception):
    """An input cannot be used; the message says what was expected and what to do next."""


def unknown(kind: str, given: str, choices: Iterable[str], hint: str = "") -> UserError:
    """Build the error for a name that is not among `choices`, with the nearest valid one.

    Args:
        kind: The kind of thing that is named, in the user's words ("game", "teacher").
        given: The name that was given.
        choices: The valid names.
        hint: What to do next, a sentence.
    """
    names = sorted(choices)
    folded = {name.casefold(): name for name in names}
    near = get_close_matches(given.casefold(), folded, n=1, cutoff=0.4)
    parts = [f"Unknown {kind} {given!r}."]
    if near:
        parts.append(f"Did you mean {folded[near[0]]!r}?")
    if len(names) <= 30:
        parts.append(f"Valid: {', '.join(names) or 'none'}.")
    if hint:
        parts.append(hint)
    return UserError(" ".join(parts))


def user_path(text: str) -> Path:
    """The path in a text from the user, with `~` expanded.

    Raises:
        UserError: the text cannot be a path.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{text[:60]!r} cannot be a path: {error}.") from None
    return path


def shortened(names: Sequence[str], most: int) -> str:
    """The first `most` names with commas between them, and three dots if there are more."""
    shown = ", ".join(names[:most])
    return f"{shown}, ..." if len(names) > most else shown


def missing_file(path: Path) -> UserError:
    """Build the error for a missing file, with the nearest name in its folder."""
    there = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, there, n=1)
    return UserError(f"There is no file {path}." + (f" Did you mean {str(path.parent / near[0])!r}?" if near else ""))
