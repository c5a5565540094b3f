"""Files of data sets: find or download them, and check them against their official checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kfrl.errors import UserError


@dataclass(frozen=True)
class File:
    """A file, as its publisher offers it."""

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
        files: The files to find.
        data_dir: The data folder; the user's cache folder by default.

    Returns:
        The files by name, and a note on those that differ from the official ones: the caller has to check that their
        content is complete.

    Raises:
        UserError: a file is missing and cannot be downloaded.
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
        f"{', '.join(differing)} in {here}: not the official files (another checksum), but complete: the right numbers "
        "of images and labels, in the right shapes",
    )


def _found(path: Path) -> Path:
    """The file, or if it is missing the one that gunzip makes of it."""
    unpacked = path.with_suffix("")
    return unpacked if path.suffix == ".gz" and not path.is_file() and unpacked.is_file() else path


def _download(name: str, file: File, path: Path, missing: Sequence[str]) -> None:
    import pooch
    import requests

    try:
        pooch.retrieve(file.url, file.checksum, path.name, path.parent, progressbar=False)
    except (requests.RequestException, OSError, ValueError) as error:
        # Without a network, the message of requests is four lines about its connection pool.
        unreachable = type(error) in (requests.ConnectionError, requests.ConnectTimeout)
        reason = f"{urlsplit(file.url).hostname} cannot be reached from here" if unreachable else error
        raise UserError(
            f"{file.name} of {name} is not in {path.parent} and could not be downloaded from {file.url}: {reason}. "
            f"Copy {', '.join(missing)} there, or set --data-dir to a folder whose subfolder {path.parent.name!r} has "
            "all files."
        ) from None
