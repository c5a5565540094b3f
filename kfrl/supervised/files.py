"""Files of data sets: found, or downloaded; checked against their official checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kfrl.errors import UserError


@dataclass(frozen=True)
class File:
    """A file as its publisher offers it."""

    name: str
    url: str
    checksum: str
    """`algorithm:hexadecimal`"""

    def matches(self, path: Path) -> bool:
        """Whether `path` is this file, byte by byte."""
        algorithm, _, expected = self.checksum.partition(":")
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest() == expected


def fetch(
    name: str, folder: str, files: Sequence[File], data_dir: Path | None
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Find every file of a data set, or download it.

    Args:
        name: The data set.
        folder: Where its files are, below the data folder.
        files: What is wanted.
        data_dir: The data folder; the user's cache folder by default.

    Returns:
        The files by name, and a note on those that differ from the official ones: usable only if their content is
        found to be whole.

    Raises:
        UserError: a file is neither there nor to be had.
    """
    if not files:
        return {}, ()
    import pooch

    here = (data_dir or Path(pooch.os_cache("kfrl"))).expanduser() / folder
    paths, differing = {}, []
    for file in files:
        path = here / file.name
        if not path.is_file():
            _download(name, file, path)
        elif not file.matches(path):
            differing.append(file.name)
        paths[file.name] = path
    if not differing:
        return paths, ()
    return paths, (
        f"{', '.join(differing)} in {here}: not the official files (another checksum), but whole: the right numbers of "
        "images and labels, in the right shapes",
    )


def _download(name: str, file: File, path: Path) -> None:
    import pooch
    import requests

    try:
        pooch.retrieve(file.url, file.checksum, path.name, path.parent, progressbar=False)
    except (requests.RequestException, OSError, ValueError) as error:
        raise UserError(
            f"{file.name} of {name} is not in {path.parent} and could not be downloaded from {file.url}: {error}. "
            f"Copy it there, or say with --data-dir where a folder {path.parent.name!r} with it is."
        ) from None
