"""Where a file came from: the code's commit and the versions under it."""

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
    """The checkout's git commit, `+dirty` if it was edited since; the release's version outside a checkout."""
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
    """The checksum of a file, hexadecimal; of several files that of their checksums' text."""
    found = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def check_pinned(paths: Sequence[Path], found: Sequence[str], pinned: Sequence[str], who: str = "config") -> None:
    """Refuse teachers whose files are not those that a run began with.

    Args:
        paths: The teachers' files.
        found: Their checksums.
        pinned: What they were; nothing where that is not known.
        who: What says so.

    Raises:
        UserError: the first teacher that differs, with both checksums.
    """
    for path, now, before in zip_longest(paths, found, pinned):
        if pinned and now != before:
            raise UserError(
                f"Teacher {path or 'missing'}: its SHA-256 is {now}, and the {who} says {before}. Put the file back "
                "with which the run began; or begin a new run with the one that is there: leave teacher_sha256 out of "
                "the config, or give --teacher-sha256 with nothing after it."
            )
