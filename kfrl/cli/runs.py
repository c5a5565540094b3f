"""What the commands that train have in common: settings from a file and from flags, a new run or one to go on with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tyro

from kfrl.config import checked, load_config
from kfrl.errors import UserError


class Flags(Protocol):
    """What a `train` command takes; a dataclass."""

    @property
    def settings(self) -> Any:
        """A dataclass of settings."""


F = TypeVar("F", bound=Flags)


def read_flags(kind: type[F], prog: str, argv: Sequence[str]) -> F:
    """The flags of `kind`, over the settings of the file that --config names.

    Raises:
        UserError: a file that cannot be used, a value out of range, or --resume beside another flag.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    early, others = first.parse_known_args(list(argv))
    if early.resume is not None and (others or early.config) and "--help" not in others:
        raise UserError(
            f"--resume goes on with a run's own settings and takes no other flag, got {' '.join(others) or '--config'}."
        )
    flags = kind()
    if early.config is not None:
        flags = replace(flags, settings=load_config(early.config, type(flags.settings)))  # type: ignore[type-var]
    parsed = tyro.cli(
        kind,
        prog=prog,
        args=list(argv),
        default=replace(flags, settings=_with_lists(flags.settings, None)),  # type: ignore[type-var]
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return replace(parsed, settings=checked(_with_lists(parsed.settings, flags.settings)))  # type: ignore[type-var]


def check_new(folder: Path, prog: str) -> None:
    """Refuse to write a run over another.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(
            f"The run folder {folder} exists. Give another --run-dir, or go on with that run: {prog} --resume {folder}"
        )


def _with_lists(settings: Any, source: Any | None) -> Any:
    """`settings` with the links, nodes and edges of `source`, or without any.

    They stand in YAML only. tyro would make flags of every entry, all with the same names, and fail.
    """
    changed: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        given = None if source is None else getattr(source, field.name)
        if is_dataclass(value):
            changed[field.name] = _with_lists(value, given)
        elif _is_list(value) or _is_list(given):
            changed[field.name] = given or ()
    return replace(settings, **changed)


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple) and any(map(is_dataclass, value))
