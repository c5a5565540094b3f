"""What the commands that train have in common: settings from a file and from flags."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from kfrl.config import checked, load_config
from kfrl.errors import UserError


@dataclass(frozen=True)
class RunFlags:
    """What every command that trains takes; the settings are its own."""

    config: Path | None = None
    """A YAML file of settings; flags override it. Every run writes one, config.yaml."""
    resume: Path | None = None
    """The folder of a run to go on with, with its own settings."""
    settings: Any = None


F = TypeVar("F", bound=RunFlags)


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
        flags = replace(flags, settings=load_config(early.config, type(flags.settings)))
    with _telling_names(flags):
        parsed = tyro.cli(
            kind,
            prog=prog,
            args=list(argv),
            default=replace(flags, settings=_with_lists(flags.settings, None)),
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    return replace(parsed, settings=checked(_with_lists(parsed.settings, flags.settings)))


def _telling_names(flags: RunFlags) -> ConstructorRegistry:
    """Rules for tyro: a setting is `--name`; one of a group whose name is taken elsewhere is `--group.name`."""
    settings = flags.settings
    held = {field.name: getattr(settings, field.name) for field in fields(settings)}
    groups: dict[Any, str] = {type(value): name for name, value in held.items() if is_dataclass(value)}
    names = Counter(field.name for one in (flags, settings, *groups) for field in fields(one))
    registry, inside = ConstructorRegistry(), set[Any]()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        kind: Any = info.type
        if kind not in groups or kind in inside:
            return None
        inside.add(kind)
        spec = ConstructorRegistry.get_struct_spec(info)
        inside.remove(kind)
        if not isinstance(spec, StructConstructorSpec):
            return None
        return replace(spec, fields=tuple(named(field, groups[kind]) for field in spec.fields))

    def named(field: StructFieldSpec, group: str) -> StructFieldSpec:
        kind: Any = Annotated[field.type, tyro.conf.arg(name=f"{group}.{field.name}")]
        return replace(field, type=kind) if names[field.name] > 1 else field

    return registry


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
