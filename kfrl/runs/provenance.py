"""Where a file came from: the code's commit and the versions under it."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path

import kfrl


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


def sha256(path: Path) -> str:
    """The file's checksum, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
