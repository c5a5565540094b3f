"""What the commands that train have in common: settings from a file and from flags."""

from __future__ import annotations

import argparse
import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from kfrl.config import checked, load_config, validated
from kfrl.errors import UserError
from kfrl.registry import method_label

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from kfrl.training.method import OwnSettings


@dataclass(frozen=True)
class RunFlags(ABC):
    """What every command that trains takes; the settings are its own."""

    config: Path | None = None
    """A YAML file of settings; flags override it. Every run writes one, config.yaml."""
    resume: Path | None = None
    """The folder of a run to go on with, with its own settings."""
    dry_run: bool = False
    """Say what the run would do and cost, and write nothing."""
    settings: Any = None

    @staticmethod
    @abstractmethod
    def method(name: str) -> type[OwnSettings]:
        """The class of a method."""


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
    first.add_argument("--method")
    first.add_argument("--algo")
    early, _ = first.parse_known_args(list(argv))
    if early.resume is not None and (others or early.config) and "--help" not in others:
        raise UserError(
            f"--resume goes on with a run's own settings and takes no other flag, got {' '.join(others) or '--config'}."
        )
    flags = kind()
    if early.config is not None:
        flags = replace(flags, settings=load_config(early.config, type(flags.settings)))
    settings = flags.settings
    name = early.method or settings.method
    method = flags.method(name) if name else None
    own = None
    if method is not None and name is not None:
        own = validated(method.resolve_settings(method_label(name), settings, settings.own), method.Settings)
    whole = _with_own(replace(flags, settings=_with_lists(settings, None)), own, method_label(name or ""))
    hidden = _unread(settings, method, early.algo) if {"-h", "--help"} & set(argv) else set[str]()
    with _telling_names(flags, own, hidden):
        parsed = tyro.cli(
            type(whole),
            prog=prog,
            args=list(argv),
            default=whole,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    given = settings.own if own is None else asdict(vars(parsed)["own"])
    return replace(parsed, settings=checked(replace(_with_lists(parsed.settings, settings), own=given)))


def _unread(settings: Any, method: type[OwnSettings] | None, algo: str | None) -> set[str]:
    """Groups of settings that neither the method nor the algorithm reads: help without --method shows none of them."""
    groups = {field.name for field in fields(settings) if is_dataclass(getattr(settings, field.name))}
    return groups - {algo or getattr(settings, "algo", ""), *(method.config_groups if method else ())}


def _with_own(flags: F, own: DataclassInstance | None, label: str) -> F:
    """The same flags, with those of the method's own settings beside them."""
    if own is None:
        return flags
    kind: Any = Annotated[type(own), tyro.conf.arg(name=label)]
    base = type(flags)
    whole: Any = make_dataclass(
        base.__name__,
        [("own", kind, dataclasses.field(default=own))],
        bases=(base,),
        frozen=True,
        namespace={"__doc__": base.__doc__},
    )
    made: F = whole(**vars(flags))
    return made


def _telling_names(flags: RunFlags, own: DataclassInstance | None, hidden: set[str]) -> ConstructorRegistry:
    """Rules for tyro.

    A setting is `--name`; one of a group whose name is taken elsewhere, by a common setting or by the method's own, is
    `--group.name`. The groups that are `hidden` have no flags at all.
    """
    settings = flags.settings
    held = {field.name: getattr(settings, field.name) for field in fields(settings)}
    groups: dict[Any, str] = {type(value): name for name, value in held.items() if is_dataclass(value)}
    taken = [field.name for one in (flags, settings, *groups, *([own] if own else [])) for field in fields(one)]
    names = Counter(taken) - Counter(["own"] if "own" in held else [])
    registry, inside = ConstructorRegistry(), set[Any]()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        kind: Any = info.type
        if kind not in (*groups, type(settings)) or kind in inside:
            return None
        inside.add(kind)
        spec = ConstructorRegistry.get_struct_spec(info)
        inside.remove(kind)
        if not isinstance(spec, StructConstructorSpec):
            return None
        if kind is type(settings):
            return replace(spec, fields=tuple(field for field in spec.fields if field.name not in {"own", *hidden}))
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
