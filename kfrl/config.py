"""Configs: typed dataclasses, read from YAML files, with every key and value checked."""

from __future__ import annotations

import functools
import math
import re
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le

from kfrl.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter

T = TypeVar("T", bound="DataclassInstance")

Fraction = Annotated[float, Ge(0.0), Le(1.0)]
Positive = Annotated[float, Gt(0.0)]
NonNegative = Annotated[float, Ge(0.0)]
Count = Annotated[int, Ge(1)]
Init = Literal["orthogonal", "torch", "xavier", "he"]
"""Initialisation of a net's weights; see `kfrl.nets.init`."""
Direction = Literal["forward", "reverse", "mixed"]
"""Direction of a KL divergence between teacher T and student S: KL[T || S], KL[S || T], or their mean."""

NAME_LISTS = ("teachers", "source_games", "answers", "log_to")
"""Settings with comma-separated names; in YAML also a list of names."""


def split_names(text: str) -> tuple[str, ...]:
    """Split comma-separated names. The path of an existing file may contain commas."""
    parts, names = text.split(","), []
    while parts:
        count = next((n for n in range(len(parts), 1, -1) if _is_path(",".join(parts[:n]))), 1)
        names.append(",".join(parts[:count]).strip())
        parts = parts[count:]
    return tuple(name for name in names if name)


def _is_path(text: str) -> bool:
    """Whether the text, [FORMAT:]PATH[@GAME], refers to an existing file."""
    whole = text.strip()
    places = (whole, re.sub(r"@[^@/,]+$", "", whole), re.sub(r"^\w+:|@[^@/,]+$", "", whole))
    try:
        return any(Path(place).expanduser().exists() for place in places)
    except (OSError, RuntimeError, ValueError):
        return False


PlainLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader of plain YAML: the one in C if PyYAML has it, which is ten times as fast."""


class _Loader(PlainLoader):  # type: ignore[misc, valid-type]  # mypy takes no variable as a base class
    """A YAML loader that reads 1e3 as a number and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping.

        Raises:
            ConstructorError: a key occurs twice.
        """
        held = [key.value for key, _ in node.value]
        for index, name in enumerate(held):
            if name in held[:index]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} occurs twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_config(path: Path, kind: type[T]) -> T:
    """Read a YAML file into the dataclass `kind`; fields that the file leaves out keep their defaults.

    Raises:
        UserError: no such file, not YAML, an unknown key (with the nearest valid one) or a wrong value.
    """
    return validated(joined_names(read_yaml(path)), kind, source=str(path))


def shipped(path: Path) -> Path:
    """The file at `path`; if it does not exist and is below `configs`, the file of that name that kfrl ships."""
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    checkout, installed = Path(__file__).parents[1], Path(sysconfig.get_path("data"), "share", "kfrl")
    return next((root / path for root in (checkout, installed) if (root / path).is_file()), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty for an empty file.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        text = shipped(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Could not read the config {path}: {error}.") from None
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, got a {type(values).__name__}.")
    # Keys x-... only define YAML anchors for other keys, as in Docker Compose files.
    return {key: value for key, value in values.items() if not str(key).startswith("x-")}


def with_former_groups(values: dict[str, Any], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Convert the groups of earlier versions, `{flow: {...}}`, to `{methods: {knowledge-flow: {...}}}`.

    Args:
        values: Settings by name.
        groups: Former group -> the methods that read it.

    Raises:
        UserError: a group is not a mapping, or a method's settings are given under both names.
    """
    former = {group: values[group] for group in groups if group in values}
    if not former:
        return values
    methods, found = values.get("methods") or {}, dict[str, dict[str, Any]]()
    for group, settings in former.items():
        if not isinstance(settings, dict):
            raise UserError(f"{group}: expected settings by name, got {settings!r}.")
        for method in groups[group]:
            if method in methods:
                raise UserError(f"The settings `{group}` are `methods.{method}` now. Give them under one name only.")
            found[method] = {**found.get(method, {}), **settings}
    others = {name: value for name, value in values.items() if name not in former}
    return {**others, "methods": {**methods, **found}}


def validated(values: dict[str, Any], kind: type[T], source: str = "The settings") -> T:
    """Build `kind` from plain values, checking keys, types and ranges.

    Raises:
        UserError: the message names every wrong value, what was expected, and for a key the nearest valid one.
    """
    from pydantic import ValidationError

    renew: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(kind, "renew", None)
    values = values if renew is None else renew(values)
    wrong = _unknown_keys(values, kind, "") or _strange_values(values, kind, "")
    if wrong:
        raise UserError(f"{source}: {' '.join(wrong)}")
    try:
        # The keys are checked above; pydantic checks the types and the ranges of the annotations.
        made: T = _adapter(kind).validate_python(values)
    except ValidationError as error:
        problems = [
            f"{_flag(problem['loc'])}: {problem['msg']}, got {problem['input']!r}." for problem in error.errors()
        ]
        raise UserError(f"{source}: {' '.join(problems)}") from None
    return made


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@functools.cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    """The validator of a dataclass, cached because building it takes much longer than using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def checked(config: T) -> T:
    """Check the ranges of a dataclass that was built without checks, e.g. from flags.

    Raises:
        UserError: see `validated`.
    """
    return validated(asdict(config), type(config))


def _flag(location: tuple[int | str, ...]) -> str:
    names = [str(part) for part in location if isinstance(part, int) or part.isidentifier()]
    return ".".join(names)


def _unknown_keys(values: dict[str, Any], kind: type, prefix: str) -> list[str]:
    known = _hints(kind)
    names = {field.name for field in fields(kind)}
    problems = []
    for key, value in values.items():
        if key not in names:
            near = get_close_matches(str(key), names, n=1, cutoff=0.4)
            meant = f" Did you mean {prefix}{near[0]}?" if near else ""
            problems.append(f"Unknown key {prefix}{key}.{meant}")
            continue
        kinds: list[Any] = [part for part in (known[key], *get_args(known[key])) if is_dataclass(part)]
        if not kinds:
            continue
        if isinstance(value, dict):
            problems += _unknown_keys(value, kinds[0], f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    problems += _unknown_keys(item, kinds[0], f"{prefix}{key}.{index}.")
    return problems


def joined_names(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with lists of names (`NAME_LISTS`) joined into comma-separated text."""

    def joined(value: Any) -> Any:
        names = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return ",".join(value) if names else value

    return {key: joined(value) if key in NAME_LISTS else value for key, value in values.items()}


def _strange_values(values: dict[str, Any], kind: type, prefix: str) -> list[str]:
    """Messages on values that pydantic accepts by mistake: `yes` for a number, and infinite numbers."""
    known = _hints(kind)
    problems = []
    for key, value in values.items():
        kinds: list[Any] = [known[key], *get_args(known[key])]
        inner: list[Any] = [part for part in kinds if is_dataclass(part)]
        if isinstance(value, dict) and inner:
            problems += _strange_values(value, inner[0], f"{prefix}{key}.")
        elif isinstance(value, bool) and not {bool, Any} & {*kinds, *(get_args(kinds[0]) or ())}:
            problems.append(
                f"{prefix}{key}: {'yes' if value else 'no'} (or on, true; off, false) is not a value of its type."
            )
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{prefix}{key}: expected a finite number, got {value}.")
    return problems


def dump_config(config: Any) -> str:
    """A dataclass as YAML: every field, in the order of the definition."""
    text: str = yaml.safe_dump(_plain(asdict(config)), sort_keys=False)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
