"""Flags that all training commands have, and settings from a file and from flags."""

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
    """The flags of every training command; each command has its own settings."""

    config: Path | None = None
    """A YAML file of settings; flags override it. Every run writes one, config.yaml."""
    resume: Path | None = None
    """The folder of a run to continue, with the run's own settings."""
    dry_run: bool = False
    """Print the plan and the cost of the run, and write nothing."""
    settings: Any = None

    @staticmethod
    @abstractmethod
    def method(name: str) -> type[OwnSettings]:
        """The class of a method."""


F = TypeVar("F", bound=RunFlags)


def read_flags(kind: type[F], prog: str, argv: Sequence[str]) -> F:
    """Parse the flags of `kind`; they override the settings in the file that --config names.

    Raises:
        UserError: the file cannot be used, a value is out of range, or --resume is given with another flag.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    early, others = first.parse_known_args(list(argv))
    if early.resume is not None and (others or early.config) and "--help" not in others:
        raise UserError(
            f"--resume uses the run's own settings and takes no other flag, got {' '.join(others) or '--config'}."
        )
    flags = kind()
    if early.config is not None:
        flags = replace(flags, settings=load_config(early.config, type(flags.settings)))
    chosen = _chosen(flags.settings, argv)
    plain = chosen.method is None and chosen.method_name == kind().settings.method_name
    # The default method has no settings of its own, so its module need not be imported.
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
    """The settings, updated with the flags that decide which other flags exist."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in ("method", "teachers", "answers", "algo"):
        if hasattr(settings, name):
            parser.add_argument(f"--{name}")
    return replace(settings, **vars(parser.parse_known_args(list(argv))[0]))


def _with_own(flags: F, own: DataclassInstance | None, label: str) -> F:
    """The flags, extended by the method's own settings."""
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
    """Rules for tyro that name the flags.

    A setting's flag is `--name`. A setting of a group is `--group.name` if a common setting, another group or the
    method has a setting of the same name. `methods` and the groups that are not in `shown` have no flags.
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
    """A method's settings with the links, nodes and edges of `source`, or with none.

    Such lists can only be given in YAML. tyro would make flags for every entry, with equal names, and fail.
    """
    lists = [f.name for f in fields(own) if any(map(is_dataclass, _entries(own, f.name) + _entries(source, f.name)))]
    return replace(own, **{name: _entries(source, name) for name in lists})


def _entries(settings: Any | None, name: str) -> tuple[Any, ...]:
    value = getattr(settings, name, ())
    return value if isinstance(value, tuple) else ()
