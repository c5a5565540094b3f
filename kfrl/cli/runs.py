"""What the commands that train have in common: settings from a file and from flags, a new run or one to go on with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tyro

from kfrl.config import checked, load_config
from kfrl.errors import UserError


class Flags(Protocol):
    """What a command that trains takes."""

    @property
    def settings(self) -> Any:
        """The dataclass of settings."""


F = TypeVar("F", bound=Flags)


def read_flags(prog: str, kind: type[F], settings: type[Any], argv: Sequence[str]) -> F:
    """Flags over the settings of `--config`, or the run of `--resume`.

    Args:
        prog: The command.
        kind: The dataclass of its flags, whose `settings` is a `settings`.
        settings: The dataclass that `--config` holds.
        argv: The words after the command.

    Raises:
        UserError: a config that is wrong, a value out of range, or flags beside `--resume`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    early, others = first.parse_known_args(list(argv))
    if early.resume is not None and (others or early.config) and "--help" not in others:
        raise UserError(
            f"--resume goes on with a run's own settings and takes no other flag, got {' '.join(others) or '--config'}."
        )
    under = settings() if early.config is None else load_config(early.config, settings)
    flags = tyro.cli(
        kind,
        prog=prog,
        args=list(argv),
        default=kind(settings=under),  # type: ignore[call-arg]
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    checked(flags.settings)
    return flags


def check_new(folder: Path, prog: str) -> None:
    """Refuse to write a run over another.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(
            f"The run folder {folder} exists. Give another --run-dir, or go on with that run: {prog} --resume {folder}"
        )
