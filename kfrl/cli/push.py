"""`kfrl push`: upload a run's student to the Hugging Face Hub, with its scores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro

from kfrl.errors import UserError


@dataclass(frozen=True)
class PushFlags:
    """Upload the student of a run to the Hugging Face Hub, with a model card of its scores, rules and teachers.

    Prints the files and asks before it uploads them.
    """

    run: tyro.conf.Positional[Path]
    """The folder of a run on a game or on images."""
    place: tyro.conf.Positional[str]
    """The repository, hub:OWNER/REPO; it is created if it does not exist."""
    private: bool = False
    """Make a new repository private."""
    license: str | None = None
    """License for the model card, by its name on the Hub, e.g. mit."""
    yes: bool = False
    """Do not ask."""
    dry_run: bool = False
    """Print the model card and the files; do not contact the Hub."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(PushFlags, prog="kfrl push", args=list(argv))
    if find_spec("huggingface_hub") is None:
        raise UserError(
            "kfrl push needs the Hub's client, which is not installed: pip install huggingface-hub (kfrl's extra: hub)."
        )
    from agents.push import CARD, check_access, send, upload_of
    from kfrl.machine import size

    upload = upload_of(flags.run, flags.place, flags.license)
    if flags.dry_run:
        content = upload.files[CARD]
        assert isinstance(content, bytes)
        print(content.decode())
    sizes = list(upload.sizes())
    for name, length in sizes:
        print(f"  {name:<24} {size(length):>9}")
    if flags.dry_run:
        print(f"Nothing was sent. These files would go to hub:{upload.repo}.")
        return 0
    user, exists = check_access(upload.repo)
    kind = "private" if flags.private else "public"
    where = "exists and gets a new commit" if exists else f"will be created, {kind}"
    total = size(sum(length for _, length in sizes))
    print(f"{len(sizes)} files, {total}, to hub:{upload.repo}, which {where}; as {user}.")
    if not flags.yes and not _agreed():
        print("Nothing was sent.")
        return 1
    print(f"Uploaded: {send(upload, private=flags.private)}")
    print(f"Anyone with access can use it: --teachers hub:{upload.repo}/student.safetensors")
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UserError("kfrl push asks before it uploads, and there is no terminal to ask on. Give --yes.")
    return input("Upload them? [y/N] ").strip().casefold() in ("y", "yes")
