"""Comparison of classifiers' finished runs: errors on the test images, over seeds, for each data set."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from kfrl.compare.facts import add_words, flat, show, teachers_files, unique_names, varying
from kfrl.config import load_config, validated
from kfrl.errors import UserError
from kfrl.runs.folder import RunFolder, Skipped, left_out_notes
from kfrl.supervised.classifiers import Card, read_card
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.methods import get_method, method_names
from kfrl.sweep.folder import member_of_sweep

MIN_SEEDS = 3
IDENTITY = {"data", "seed", "method", "teachers", "teacher_sha256"}
"""Settings that the name of an arm or its table shows."""
BOOKKEEPING = {"run_dir", "data_dir", "device", "checkpoint_every", "memory_gb"}
"""Settings that do not change what is learned."""
FILES = ("teacher.file", "data.folder")
"""The facts of a run that say which files it learned from."""


@dataclass(frozen=True)
class Score:
    """The part of `eval.json` about the student alone."""

    error_percent: Annotated[float, Ge(0.0), Le(100.0)]
    images: Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Record:
    """A classifier's finished run."""

    path: Path
    config: SupervisedConfig
    card: Card
    test: Score
    deployed: int
    trained: int
    group: str | None = None
    """The user's name for the run's arm."""
    sweep: str | None = None
    """The arm's name in the run's sweep."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in which two runs of a method can differ, by name (`knowledge-flow.kl_coef`)."""
        held = asdict(self.config)
        held |= held.pop("methods")
        known = flat({name: value for name, value in held.items() if name not in IDENTITY | BOOKKEEPING})
        # FILES: other teacher files, or another folder of images, make another arm also under the same name.
        known["teacher.file"] = teachers_files(self.config.teacher_sha256) or self.config.teachers
        known["keep"] = self.config.kept
        known["data.folder"] = self.config.data if "/" in self.config.data else ""
        return known


@dataclass(frozen=True)
class Arm:
    """Classifiers' runs of one method under the same settings on one data set, by seed."""

    name: str
    data: str
    runs: tuple[Record, ...]

    @property
    def errors(self) -> list[float]:
        """The test error of each seed, in percent."""
        return [run.test.error_percent for run in self.runs]

    @property
    def mean(self) -> float:
        """The mean error."""
        return statistics.fmean(self.errors)

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds; None for a single run."""
        return statistics.stdev(self.errors) if len(self.runs) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """A comparison of classifiers' runs: everything that `kfrl supervised compare` shows."""

    arms: tuple[Arm, ...]
    data: tuple[str, ...]
    notes: tuple[str, ...]
    """Remarks on the numbers, one sentence each."""


def read_run(path: Path, group: str | None = None) -> Record:
    """Read one finished run.

    Args:
        path: Its folder.
        group: The user's name for its arm. Without it, a run of a sweep has its arm's name in the sweep.

    Raises:
        UserError: the folder is empty, unfinished, damaged or no result of its sweep; the message says in what.
    """
    folder = RunFolder(path)
    folder.check_finished("kfrl supervised train --resume")
    try:
        values = json.loads(folder.evaluation.read_text())
        wanted = {field.name for field in fields(Score)}
        score = {name: value for name, value in values["test"].items() if name in wanted}
        deployed, trained = int(values["deployed_parameters"]), int(values["trained_parameters"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"damaged: {folder.evaluation.name}: {error!r}") from None
    config = load_config(folder.config, SupervisedConfig)
    config = replace(config, methods=get_method(config.method_name).resolve_settings(config, method_names()))
    test = validated(score, Score, folder.evaluation.name)
    sweep = None if group else member_of_sweep(path)
    return Record(path, config, read_card(folder.student), test, deployed, trained, group, sweep)


def compare(records: Sequence[Record], skipped: Sequence[Skipped] = ()) -> Comparison:
    """Group runs into arms, and note what differs between the arms.

    Raises:
        UserError: there is no run.
    """
    left_out = left_out_notes(records, skipped)
    arms = [arm for data in sorted({run.card.data for run in records}) for arm in _arms(records, data)]
    notes = [
        "Errors are those of the kept student alone, on test images that were used for no choice. n counts runs; +- is "
        "the standard deviation over them.",
        *(note for data in dict.fromkeys(arm.data for arm in arms) for note in _notes(data, arms)),
        *left_out,
    ]
    return Comparison(tuple(arms), tuple(dict.fromkeys(arm.data for arm in arms)), tuple(notes))


def _arms(records: Sequence[Record], data: str) -> list[Arm]:
    grouped: dict[Hashable, list[Record]] = defaultdict(list)
    for record in records:
        if record.card.data == data:
            grouped[record.group or _key(record)].append(record)
    members = [sorted(runs, key=lambda run: (run.config.seed, str(run.path))) for runs in grouped.values()]
    firsts = [runs[0] for runs in members]
    names = unique_names([_short_name(run) for run in firsts], [_telling(run) for run in firsts])
    arms = [Arm(name, data, tuple(runs)) for name, runs in zip(names, members, strict=True)]
    return sorted(arms, key=lambda arm: (bool(arm.runs[0].card.teachers), arm.name))


def _key(run: Record) -> Hashable:
    return run.sweep or (run.config.label, run.card.teachers), repr(_telling(run))


def _telling(run: Record) -> dict[str, Any]:
    """The facts that distinguish arms of one name. In a sweep these are files alone, because settings may be drawn."""
    return run.settings if run.sweep is None else {name: run.settings[name] for name in FILES}


def _short_name(run: Record) -> str:
    return run.group or run.sweep or add_words(run.config.label, "+".join(run.card.teachers))


def _notes(data: str, arms: Sequence[Arm]) -> list[str]:
    here = [arm for arm in arms if arm.data == data]
    notes = []
    few = [f"{arm.name} ({len(arm.runs)})" for arm in here if len(arm.runs) < MIN_SEEDS]
    if few:
        notes.append(f"{data}: fewer than {MIN_SEEDS} seeds, so the spread is not reliable: {', '.join(few)}.")
    for arm in here:
        seeds = [run.config.seed for run in arm.runs]
        if len(set(seeds)) < len(seeds):
            notes.append(f"{data}: {arm.name} has several runs of one seed.")
        differing = varying([run.settings for run in arm.runs])
        if differing:
            notes.append(f"{data}: runs of {arm.name} differ in {', '.join(differing)}.")
    facts = [arm.runs[0].settings for arm in here]
    for name in varying(facts):
        if "." not in name:
            held = ", ".join(f"{arm.name} {show(fact[name])}" for arm, fact in zip(here, facts, strict=True))
            notes.append(f"{data}: arms differ in {name}: {held}.")
    return notes
