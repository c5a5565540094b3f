"""The file of a sweep: the trials that it describes and the values drawn for each."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from kfrl.config import Count, Positive, joined_names, load_config, read_yaml, split_names
from kfrl.errors import UserError, unknown
from kfrl.sweep.domain import Domain

AXES = ("grid", "range")
"""`{grid: [..]}`: one trial for each value. `{range: n}`: the grid of 1 to n."""
DRAWS = ("choice", "uniform", "log_uniform", "integers")
"""`{choice: [..]}`: one of these values. The others draw between two ends; `integers` includes both ends."""
TEACHER = "@"
"""The prefix of the name of one of the sweep's own teachers."""
_LONGEST_NAME = 150


@dataclass(frozen=True)
class Resources:
    """The CPUs and GPUs that Ray reserves for a trial."""

    cpu: Positive | None = None
    """CPUs. Default: one for each process of the run."""
    gpu: Positive | None = None
    """GPUs. Default: 1 with device cuda, else 0; with 0.25 four trials share one GPU."""


@dataclass(frozen=True)
class EarlyStopping:
    """ASHA: at each rung, continue the best 1/factor of the trials that have reached the rung so far."""

    grace: Annotated[float, Gt(0.0), Lt(1.0)] = 0.5
    """The first rung, as a share of the run."""
    factor: Annotated[float, Gt(1.0)] = 4.0


@dataclass(frozen=True)
class Spec:
    """The content of a sweep's file."""

    runs: Literal["games", "images"] = "games"
    """The domain of the runs: games (`kfrl train`) or images (`kfrl supervised train`)."""
    seed: Annotated[int, Ge(0)] = 1
    """Seed of the draws."""
    config: Path | None = None
    """A file of default settings, which the settings below override; its path is relative to this file."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of every run, by name (`ppo.epochs`): a value, an axis or a distribution."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of each arm of a comparison, by the arm's name; they override `settings`."""
    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of runs that are trained first, by name; `teachers: "@name"` means the student of one."""
    samples: Count | None = None
    """Number of draws, each combined with every point of the axes. None: every run (so every seed) has its own."""
    resources: Resources = field(default_factory=Resources)
    early_stopping: EarlyStopping | None = None
    scaled: dict[str, Any] = field(default_factory=dict)
    """Settings that override all others when --scale is given."""
    paper: tuple[str, ...] = ()
    """The results that a paper reports, a line each; printed beside the results of the sweep."""


@dataclass(frozen=True)
class FixedTeacher:
    """A teacher that a name in the settings stood for when the sweep was prepared."""

    reference: str
    """The exact reference to its file."""
    sha256: str
    """The checksum of its file."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """The name of its folder."""
    settings: dict[str, Any]
    """Settings as `train` takes them, without run_dir; the sweep's own teachers still have their `@`."""
    group: str
    """The common name of the runs that differ only in subject, seed and draws."""
    drawn: dict[str, Any]
    """The values drawn for it, by setting."""
    teacher: str = ""
    """The name under which other trials use it as a teacher; empty if none does."""
    level: int = 0
    """Trials of level 1 wait for the teachers of level 0, and so on."""
    cpu: float = 1.0
    gpu: float = 0.0


def load_spec(path: Path) -> Spec:
    """Read a sweep's file.

    Raises:
        UserError: a file that cannot be read, an unknown key or a wrong value.
    """
    return load_config(path, Spec)


def make_trials(spec: Spec, domain: Domain, scale: float = 1.0, beside: Path = Path()) -> list[Trial]:
    """All trials of a sweep, teachers first. The same file always gives the same trials.

    Args:
        spec: The content of the sweep's file.
        domain: The domain of the runs.
        scale: Factor on each budget and on the number of seeds of each arm; at least 1 of each remains.
        beside: The folder that the path `spec.config` is relative to.

    Raises:
        UserError: a malformed axis or distribution, settings that no run can have, or two equal runs.
    """
    base = flat(read_yaml(beside / spec.config)) if spec.config else {}
    rows = [
        *(_Row(f"teacher-{_slug(name)}", {**base, **flat(own)}, teacher=name) for name, own in spec.teachers.items()),
        *_arms(spec, base),
    ]
    levels = _levels(spec)
    trials = [trial for row in rows for trial in _expand(row, spec, domain, scale, levels)]
    if not trials:
        raise UserError("The sweep holds no run: give settings, e.g. `settings: {game: Alien}`.")
    _check_apart(trials)
    return trials


@dataclass(frozen=True)
class _Row:
    """Settings whose axes and distributions are not expanded yet."""

    name: str
    settings: dict[str, Any]
    teacher: str | None = None


def _arms(spec: Spec, base: Mapping[str, Any]) -> list[_Row]:
    common = {**base, **flat(spec.settings)}
    if not spec.arms:
        return [_Row("", common)] if spec.settings or not spec.teachers else []
    return [_Row(_slug(name), {**common, **flat(own)}) for name, own in spec.arms.items()]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"ppo": {"epochs": 1}} -> {"ppo.epochs": 1}; axes and distributions stay mappings."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and not _marker(value):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flat`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, name = key.split(".")
        inside = found
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[name] = value
    return found


def _marker(value: Any) -> str | None:
    """The name of the axis or distribution that a value is; None for an ordinary value."""
    if isinstance(value, dict) and len(value) == 1:
        (name,) = value
        return name if name in (*AXES, *DRAWS) else None
    return None


def _expand(row: _Row, spec: Spec, domain: Domain, scale: float, levels: Mapping[str, int]) -> Iterator[Trial]:
    settings = dict(row.settings)
    if scale != 1.0:
        settings |= flat(spec.scaled)
    settings.setdefault("seed", 1)
    axes = {key: _values(key, value) for key, value in settings.items() if _marker(value) in AXES}
    draws = {key: value for key, value in settings.items() if _marker(value) in DRAWS}
    for key, value in draws.items():
        _check_distribution(key, value)
    if row.teacher is not None and (axes or draws):
        raise UserError(f"Teacher {row.teacher!r} is one run: give {', '.join([*axes, *draws])} one value.")
    if spec.samples is not None and not draws and row.teacher is None:
        raise UserError(f"samples: {spec.samples}, but nothing is drawn. Give a setting a distribution: {_SHAPES}.")
    if scale != 1.0 and "seed" in axes:
        axes["seed"] = axes["seed"][: max(1, round(len(axes["seed"]) * scale))]
    samples: Sequence[int | None] = range(spec.samples) if spec.samples is not None and draws else [None]
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        for sample in samples:
            whose: Any = [row.name, sorted(point.items())] if sample is None else sample
            drawn = {name: draw(value, spec.seed, whose, name) for name, value in draws.items()}
            yield _trial(row, spec, domain, scale, levels, {**settings, **point, **drawn}, point, drawn, sample)


def _trial(
    row: _Row,
    spec: Spec,
    domain: Domain,
    scale: float,
    levels: Mapping[str, int],
    settings: dict[str, Any],
    point: Mapping[str, Any],
    drawn: dict[str, Any],
    sample: int | None,
) -> Trial:
    whole = joined_names(nested(settings))
    default = next(one.default for one in fields(domain.settings) if one.name == domain.budget)
    whole.setdefault(domain.budget, default)
    if scale != 1.0:
        whole[domain.budget] = max(1, round(whole[domain.budget] * scale))
    name = row.name or "run"
    try:
        domain.check(_without_own_teachers(whole))
        gpus = _gpus(whole)
    except UserError as error:
        raise UserError(f"Runs {name!r}: {error}") from None
    own = {key: value for key, value in point.items() if key not in (domain.subject, "seed")}
    group = "-".join(filter(None, [row.name, *(_slug(_words(key, value)) for key, value in own.items())]))
    parts = [row.name, *(_slug(_words(key, value)) for key, value in point.items() if key != "seed")]
    if sample is not None:
        parts.append(f"d{sample + 1}")
    if row.teacher is None:
        parts.append(f"s{settings['seed']}")
    return Trial(
        name=_short("-".join(filter(None, parts))),
        settings=whole,
        group=group or name,
        drawn=drawn,
        teacher=row.teacher or "",
        level=_level(whole, levels),
        cpu=spec.resources.cpu or domain.processes(whole),
        gpu=spec.resources.gpu or gpus,
    )


def _gpus(settings: Mapping[str, Any]) -> float:
    device = settings.get("device", "cpu")
    if device not in ("cpu", "cuda"):
        raise UserError(f"device {device}: in a sweep Ray chooses the GPU; give cuda.")
    return 1.0 if device == "cuda" else 0.0


def _words(key: str, value: Any) -> str:
    """A value as part of a trial's name; numbers are written with the name of their setting."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return "+".join(value)
    return f"{key.rpartition('.')[2]}={value}"


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=+]+", "_", str(text).strip().replace(",", "+")).strip("_").lower() or "none"


def _short(name: str) -> str:
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# --- axes and distributions -----------------------------------------------------------------------------------

_SHAPES = "{choice: [0.1, 0.5]}, {uniform: [0, 1]}, {log_uniform: [1e-4, 1e-2]} or {integers: [1, 9]}"


def _values(key: str, axis: Mapping[str, Any]) -> list[Any]:
    (name, given) = next(iter(axis.items()))
    if name == "range":
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise UserError(f"{key}: {{range: n}} means 1 to n and expects a whole n of at least 1, got {given!r}.")
        return list(range(1, given + 1))
    if not isinstance(given, list) or not given:
        raise UserError(f"{key}: {{grid: [..]}} expects at least one value, got {given!r}.")
    return given


def _check_distribution(key: str, value: Mapping[str, Any]) -> None:
    (name, given) = next(iter(value.items()))
    if name == "choice":
        if not isinstance(given, list) or not given:
            raise UserError(f"{key}: {{choice: [..]}} expects at least one value, got {given!r}.")
        return
    numbers = (
        isinstance(given, list)
        and len(given) == 2
        and all(isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end) for end in given)
    )
    if not numbers:
        raise UserError(f"{key}: {{{name}: [low, high]}} expects two numbers, got {given!r}.")
    low, high = given
    if low >= high:
        raise UserError(
            f"{key}: {{{name}: [low, high]}} expects low below high, got [{low}, {high}]. Swap them: [{high}, {low}]."
        )
    if name == "log_uniform" and low <= 0:
        raise UserError(f"{key}: log_uniform expects two numbers above 0, got [{low}, {high}].")
    if name == "integers" and not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f"{key}: integers expects two whole numbers, got [{low}, {high}].")


def draw(value: Mapping[str, Any], seed: int, key: Any, name: str) -> Any:
    """Draw a value from a distribution.

    Args:
        value: The distribution, e.g. `{choice: [..]}`.
        seed: Seed of the sweep.
        key: Identifies the trial or the sample. The draw depends on it, not on which other trials exist.
        name: The name of the setting.
    """
    text = json.dumps([seed, key, name], default=str)
    generator = np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
    (kind, given) = next(iter(value.items()))
    if kind == "choice":
        return given[int(generator.integers(len(given)))]
    low, high = given
    if kind == "integers":
        return int(generator.integers(low, high + 1))
    if kind == "log_uniform":
        return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.6g}")
    return float(f"{generator.uniform(low, high):.6g}")


# --- the sweep's own teachers -----------------------------------------------------------------------------------


def teacher_names(settings: Mapping[str, Any]) -> list[str]:
    """The names of the sweep's own teachers in a run's settings, without their `@`."""
    return [name[1:] for name in _named(settings) if name.startswith(TEACHER)]


def _named(settings: Mapping[str, Any]) -> list[str]:
    return list(split_names(joined_names(dict(settings)).get("teachers") or ""))


def with_teachers(settings: Mapping[str, Any], references: Mapping[str, str]) -> dict[str, Any]:
    """The settings, with each `@name` replaced by `references[name]`."""
    if not teacher_names(settings):
        return dict(settings)
    names = [references[name[1:]] if name.startswith(TEACHER) else name for name in _named(settings)]
    return {**settings, "teachers": ",".join(names)}


def named_teachers(settings: Mapping[str, Any]) -> list[str]:
    """The names in a run's settings of teachers that the sweep does not train; stored answers need none of them."""
    return [] if settings.get("answers") else [name for name in _named(settings) if not name.startswith(TEACHER)]


def with_fixed_teachers(settings: Mapping[str, Any], fixed: Mapping[str, Sequence[FixedTeacher]]) -> dict[str, Any]:
    """The settings, with each name of a fixed teacher replaced by its exact reference.

    The checksums are added if all teachers of the run are fixed, and the settings have none.
    """
    names = _named(settings)
    if settings.get("answers") or not any(name in fixed for name in names):
        return dict(settings)
    exact = [one.reference for name in names for one in fixed.get(name, [FixedTeacher(name, "")])]
    known = [one.sha256 for name in names for one in fixed.get(name, ())]
    pinned = settings.get("teacher_sha256") or (known if len(known) == len(exact) else ())
    return {**settings, "teachers": ",".join(exact), **({"teacher_sha256": list(pinned)} if pinned else {})}


def _without_own_teachers(settings: Mapping[str, Any]) -> dict[str, Any]:
    return with_teachers(settings, {name: name for name in teacher_names(settings)})


def _levels(spec: Spec) -> dict[str, int]:
    """The level of each teacher: 0 for a teacher without teachers of the sweep, else 1 + the highest level of those."""
    levels: dict[str, int] = {}

    def level(name: str, above: tuple[str, ...]) -> int:
        if name not in spec.teachers:
            raise unknown("teacher of the sweep", TEACHER + name, [TEACHER + one for one in spec.teachers])
        if name in above:
            raise UserError(f"The sweep's teachers need each other in a circle: {' -> '.join((*above, name))}.")
        if name not in levels:
            below = teacher_names(flat(spec.teachers[name]))
            levels[name] = max((level(one, (*above, name)) + 1 for one in below), default=0)
        return levels[name]

    for name in spec.teachers:
        level(name, ())
    return levels


def _level(settings: Mapping[str, Any], levels: Mapping[str, int]) -> int:
    named = teacher_names(settings)
    for name in named:
        if name not in levels:
            raise unknown("teacher of the sweep", TEACHER + name, [TEACHER + one for one in levels])
    return max((levels[name] + 1 for name in named), default=0)


def _check_apart(trials: Sequence[Trial]) -> None:
    """Refuse two runs with one name or the same settings; a teacher and a compared run may have the same settings."""
    names: dict[str, Trial] = {}
    contents: dict[tuple[bool, str], Trial] = {}
    for trial in trials:
        if trial.name in names:
            raise UserError(
                f"Two runs of the sweep have the same folder, {trial.name}: give arms and values other names."
            )
        names[trial.name] = trial
        content = json.dumps(trial.settings, sort_keys=True, default=str)
        first = contents.setdefault((bool(trial.teacher), content), trial)
        if first is not trial:
            raise UserError(
                f"Two runs of the sweep are the same, {first.name} and {trial.name}: leave one of them out."
            )
