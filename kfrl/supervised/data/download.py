"""Files of data sets: found, or downloaded; checked against their official checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

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
    paths, differing = {file.name: _found(here / file.name) for file in files}, []
    missing = [name for name, path in paths.items() if not path.is_file()]
    for file in files:
        path = paths[file.name]
        if file.name in missing:
            _download(name, file, path, missing)
        elif not file.matches(path):
            differing.append(path.name)
    if not differing:
        return paths, ()
    return paths, (
        f"{', '.join(differing)} in {here}: not the official files (another checksum), but whole: the right numbers of "
        "images and labels, in the right shapes",
    )


def _found(path: Path) -> Path:
    """The file, or what somebody unpacked from it with gunzip."""
    unpacked = path.with_suffix("")
    return unpacked if path.suffix == ".gz" and not path.is_file() and unpacked.is_file() else path


def _download(name: str, file: File, path: Path, missing: Sequence[str]) -> None:
    import pooch
    import requests

    try:
        pooch.retrieve(file.url, file.checksum, path.name, path.parent, progressbar=False)
    except (requests.RequestException, OSError, ValueError) as error:
        # What requests says of a machine without a network is four lines about its connection pool.
        unreachable = type(error) in (requests.ConnectionError, requests.ConnectTimeout)
        reason = f"{urlsplit(file.url).hostname} cannot be reached from here" if unreachable else error
        raise UserError(
            f"{file.name} of {name} is not in {path.parent} and could not be downloaded from {file.url}: {reason}. "
            f"Copy {', '.join(missing)} there, or say with --data-dir where a folder {path.parent.name!r} with "
            f"{'them' if len(missing) > 1 else 'it'} is."
        ) from None
