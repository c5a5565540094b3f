"""The origin of files: the commit of the code, and checksums."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import kfrl
from kfrl.errors import UserError


@functools.cache
def commit() -> str:
    """The git commit of the checkout, with `+dirty` if files were edited since; outside a checkout the version."""
    here = Path(kfrl.__file__).parent
    try:
        revision = _git(here, "rev-parse", "HEAD")
        edited = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return kfrl.__version__
    return revision + ("+dirty" if edited else "")


def _git(directory: Path, *arguments: str) -> str:
    finished = subprocess.run(
        ["git", *arguments], cwd=directory, capture_output=True, text=True, check=True, timeout=10
    )
    return finished.stdout.strip()


def sha256(*files: Path) -> str:
    """The hexadecimal SHA-256 of a file; of several files, the SHA-256 of the text of their checksums."""
    found = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def check_pinned(paths: Sequence[Path], found: Sequence[str], pinned: Sequence[str], who: str = "config") -> None:
    """Refuse teachers whose files differ from those that a run started with.

    Args:
        paths: The teachers' files.
        found: Their checksums.
        pinned: The checksums at the start of the run; empty if they are not known.
        who: The place that holds the pinned checksums, for the message.

    Raises:
        UserError: the first teacher that differs, with both checksums.
    """
    for path, now, before in zip_longest(paths, found, pinned):
        if pinned and now != before:
            raise UserError(
                f"Teacher {path or 'missing'}: its SHA-256 is {now}, and the {who} says {before}. Restore the file "
                "that the run started with; or start a new run with the present file: leave teacher_sha256 out of "
                "the config, or give --teacher-sha256 without a value."
            )
