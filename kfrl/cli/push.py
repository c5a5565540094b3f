"""`kfrl push`: a run's student on the Hugging Face Hub, with its scores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from kfrl.errors import UserError


@dataclass(frozen=True)
class PushFlags:
    """Upload the student of a run to the Hugging Face Hub, with a model card of its scores, rules and teachers.

    Says what it will upload, and asks.
    """

    run: tyro.conf.Positional[Path]
    """The folder of a run on a game or on images."""
    place: tyro.conf.Positional[str]
    """hub:OWNER/REPO; the repository is made if it is not there."""
    private: bool = False
    """Make a new repository private."""
    license: str | None = None
    """As the Hub names it, e.g. mit; for the model card."""
    yes: bool = False
    """Do not ask."""
    dry_run: bool = False
    """Print the model card and what would be uploaded, ask the Hub nothing, and send nothing."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(PushFlags, prog="kfrl push", args=list(argv))
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise UserError(
            "kfrl push needs the Hub's client, which is not installed: pip install huggingface-hub (kfrl's extra: hub)."
        ) from None
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
        print(f"Nothing was sent. hub:{upload.repo} would get these files.")
        return 0
    user, exists = check_access(upload.repo)
    kind = "private" if flags.private else "public"
    where = "is there, and gets another commit" if exists else f"will be made, {kind}"
    total = size(sum(length for _, length in sizes))
    print(f"{len(sizes)} files, {total}, to hub:{upload.repo}, which {where}; as {user}.")
    if not flags.yes and not _agreed():
        print("Nothing was sent.")
        return 1
    print(f"Uploaded: {send(upload, private=flags.private)}")
    print(f"Anyone who may see it can use it: --teachers hub:{upload.repo}/student.safetensors")
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UserError("There is no terminal to ask whether to upload this. Give --yes.")
    return input("Upload them? [y/N] ").strip().casefold() in ("y", "yes")
