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

from kfrl.config import checked, load_config
from kfrl.errors import UserError

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
    if early.resume is not None and (others or early.config) and "--help" not in others:
        raise UserError(
            f"--resume goes on with a run's own settings and takes no other flag, got {' '.join(others) or '--config'}."
        )
    flags = kind()
    if early.config is not None:
        flags = replace(flags, settings=load_config(early.config, type(flags.settings)))
    chosen = _chosen(flags.settings, argv)
    plain = chosen.method is None and chosen.method_name == kind().settings.method_name
    # The default method has no settings, and is not imported for them.
    method = None if plain else flags.method(chosen.method_name)
    own = None if method is None else method.read_settings(chosen)
    whole = _with_own(flags, None if own is None else _with_lists(own, None), method.section() if method else "")
    with _telling_names(whole, own, {getattr(chosen, "algo", "")}):
        parsed = tyro.cli(
            type(whole),
            prog=prog,
            args=list(argv),
            default=whole,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    methods = dict(flags.settings.methods)
    if method is not None and own is not None and fields(own):
        methods[method.section()] = asdict(_with_lists(vars(parsed)["own"], own))
    return replace(parsed, settings=checked(replace(parsed.settings, methods=methods)))


def _chosen(settings: Any, argv: Sequence[str]) -> Any:
    """The settings with those flags that decide which others there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in ("method", "teachers", "answers", "algo"):
        if hasattr(settings, name):
            parser.add_argument(f"--{name}")
    return replace(settings, **vars(parser.parse_known_args(list(argv))[0]))


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


def _telling_names(flags: RunFlags, own: DataclassInstance | None, shown: set[str]) -> ConstructorRegistry:
    """Rules for tyro.

    A setting is `--name`; one of a group whose name is taken elsewhere, by a common setting or by the method's own, is
    `--group.name`. Groups that are not `shown` have no flags, nor has `methods`.
    """
    settings = flags.settings
    held = {field.name: getattr(settings, field.name) for field in fields(settings)}
    groups: dict[Any, str] = {type(value): name for name, value in held.items() if is_dataclass(value)}
    hidden = {"methods", *(set(groups.values()) - shown)}
    names = Counter(field.name for one in (flags, settings, *groups, *([own] if own else [])) for field in fields(one))
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
            return replace(spec, fields=tuple(field for field in spec.fields if field.name not in hidden))
        return replace(spec, fields=tuple(named(field, groups[kind]) for field in spec.fields))

    def named(field: StructFieldSpec, group: str) -> StructFieldSpec:
        kind: Any = Annotated[field.type, tyro.conf.arg(name=f"{group}.{field.name}")]
        return replace(field, type=kind) if names[field.name] > 1 else field

    return registry


def _with_lists(own: Any, source: Any | None) -> Any:
    """A method's settings with the links, nodes and edges of `source`, or without any.

    They stand in YAML only. tyro would make flags of every entry, all with the same names, and fail.
    """
    lists = [f.name for f in fields(own) if any(map(is_dataclass, _entries(own, f.name) + _entries(source, f.name)))]
    return replace(own, **{name: _entries(source, name) for name in lists})


def _entries(settings: Any | None, name: str) -> tuple[Any, ...]:
    value = getattr(settings, name, ())
    return value if isinstance(value, tuple) else ()
