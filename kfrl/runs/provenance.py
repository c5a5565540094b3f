"""The origin of files: the commit of the code, and checksums."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import kfrl
from kfrl.errors import UserError

PIECE = 1 << 20
"""Bytes of a file that are in memory at once while it is hashed."""


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
    found = [_digest(file) for file in files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        # In pieces, because a file of stored answers may be larger than the memory.
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def check_pinned(
    paths: Sequence[Path],
    found: Sequence[str],
    pinned: Sequence[str],
    who: str = "config",
    *,
    kind: Literal["teacher", "answers"] = "teacher",
) -> None:
    """Refuse files that differ from those that a run started with.

    Args:
        paths: The files.
        found: Their checksums.
        pinned: The checksums at the start of the run; empty if they are not known.
        who: The place that holds the pinned checksums, for the message.
        kind: What the files are, for the message.

    Raises:
        UserError: the first file that differs, with both checksums.
    """
    for path, now, before in zip_longest(paths, found, pinned):
        if pinned and now != before:
            raise UserError(
                f"{kind.capitalize()} {path or 'missing'}: its SHA-256 is {now}, and the {who} says {before}. Restore "
                f"the file that the run started with; or start a new run with the present file: leave {kind}_sha256 "
                f"out of the config, or give --{kind}-sha256 without a value."
            )
