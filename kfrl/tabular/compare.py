"""Comparison of finished runs on tables: errors over splits, paired where the splits are the same."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from kfrl.compare.facts import add_words, show, teachers_files, unique_names, varying
from kfrl.config import load_config
from kfrl.errors import UserError
from kfrl.runs.folder import RunFolder, Skipped, left_out_notes
from kfrl.runs.metrics import read_metrics
from kfrl.tabular.config import TabularConfig
from kfrl.tabular.run import ERROR, RMSE
from kfrl.tabular.students import Card, read_card
from kfrl.tabular.teachers import teacher_label

IDENTITY = {"data", "seed", "method", "teacher", "teacher_sha256", "splits"}
BOOKKEEPING = {"run_dir", "data_dir"}
SAME_SPLITS = ("test", "train_cases", "seed", "target")

SURVEY = {
    "breastcancer": {"born-again-tree (arc-fs)": 3.9, "cart": 5.9, "arc-fs": 3.0},
    "ionosphere": {"born-again-tree (arc-fs)": 6.1, "cart": 11.2, "arc-fs": 5.7},
    "glass": {"born-again-tree (arc-fs)": 28.2, "cart": 30.4, "arc-fs": 21.6},
    "soybean": {"born-again-tree (arc-fs)": 8.4, "cart": 8.6, "arc-fs": 6.3},
    "sonar": {"born-again-tree (arc-fs)": 25.1, "cart": 32.1, "arc-fs": 16.0},
}
"""Test errors in percent of Breiman and Shang 1996, as Table 2 of the survey (Kersner 2017) quotes them."""


@dataclass(frozen=True)
class Record:
    """A finished run on a table."""

    path: Path
    config: TabularConfig
    card: Card
    rows: tuple[dict[str, float], ...]
    """Rows of metrics, one for each split."""
    model: dict[str, float]
    group: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in which two runs of a method can differ, by name (`tree.alter`)."""
        known: dict[str, Any] = {}
        for name, value in asdict(self.config).items():
            if isinstance(value, dict):
                known |= {f"{name}.{key}": inner for key, inner in value.items()}
            elif name not in IDENTITY | BOOKKEEPING:
                known[name] = value
        # Another file makes another arm also under the same name.
        known["teacher.file"] = teachers_files(self.config.teacher_sha256) or self.config.teacher
        return known

    @property
    def table_path(self) -> str:
        """The path of the table's file; empty for a table with a name of its own."""
        return self.config.data if "/" in self.config.data else ""

    @property
    def label(self) -> str:
        """Method and teacher."""
        teacher = teacher_label(self.config)
        return self.group or add_words(self.config.method, "" if teacher == "none" else teacher)

    @property
    def split_names(self) -> list[tuple[Any, ...]]:
        """The settings that determine each split's test cases."""
        which = tuple(getattr(self.config, name) for name in SAME_SPLITS)
        return [(*which, index) for index in range(len(self.rows))]


@dataclass(frozen=True)
class Arm:
    """Runs of one method under the same settings on one table."""

    name: str
    data: str
    runs: tuple[Record, ...]

    def values(self, metric: str) -> list[float]:
        """The metric of each split."""
        return [row[metric] for run in self.runs for row in run.rows if metric in row]

    def mean(self, metric: str) -> float | None:
        """The metric's mean over splits; None if no run has it."""
        held = self.values(metric)
        return statistics.fmean(held) if held else None

    def model(self, name: str) -> float | None:
        """The mean over runs of a number of the models, e.g. `leaves`; None if no run has it."""
        held = [run.model[name] for run in self.runs if name in run.model]
        return statistics.fmean(held) if held else None

    @property
    def others(self) -> list[str]:
        """The models that were scored beside the students."""
        names = dict.fromkeys(name for run in self.runs for row in run.rows for name in row)
        return [name.removeprefix(f"{RMSE}_") for name in names if name.startswith(f"{RMSE}_")]


@dataclass(frozen=True)
class Difference:
    """Errors of one arm minus another's on the same test cases, in percentage points."""

    mean: float
    splits: int
    low: float | None = None
    """Low and high: the 95 % interval; None if the difference is equal in all splits."""
    high: float | None = None
    p: float | None = None
    """Two-sided p value of the test that gives the interval."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs on tables: everything that `kfrl tabular compare` shows."""

    arms: tuple[Arm, ...]
    data: tuple[str, ...]
    notes: tuple[str, ...]

    def base(self, data: str) -> Arm | None:
        """The arm that the others are compared with: CART, if there is one."""
        return next((arm for arm in self.arms if arm.data == data and arm.runs[0].config.method == "cart"), None)


def read_run(path: Path, group: str | None = None) -> Record:
    """Read one finished run.

    Raises:
        UserError: the folder is empty, unfinished or damaged; the message says in what.
    """
    folder = RunFolder(path)
    folder.check_finished("kfrl tabular train --resume")
    config = load_config(folder.config, TabularConfig)
    rows = read_metrics(folder.metrics)
    try:
        model = {str(name): float(value) for name, value in json.loads(folder.evaluation.read_text())["model"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"damaged: {folder.evaluation.name}: {error!r}") from None
    if len(rows) < config.splits or not all(ERROR in row and RMSE in row for row in rows):
        raise UserError(f"damaged: {folder.metrics.name} lacks rows of its {config.splits} splits")
    return Record(path, config, read_card(folder.student), tuple(rows), model, group)


def corrected_difference(gaps: Sequence[float], ratio: float) -> Difference:
    """The mean of differences over repeated random splits, by the corrected t test of Nadeau and Bengio (2003).

    Splits share cases, so their differences are not independent: the variance of the mean is
    s^2 (1/n + n_test / n_train), with Student's t of n - 1 degrees of freedom.

    Args:
        gaps: (n,), n >= 2.
        ratio: n_test / n_train.
    """
    count, middle = len(gaps), statistics.fmean(gaps)
    # Equal differences may differ by rounding.
    if max(gaps) - min(gaps) < 1e-9:
        return Difference(middle, count)
    spread = statistics.stdev(gaps) * math.sqrt(1 / count + ratio)
    reach = float(student_t.ppf(0.975, count - 1)) * spread
    p_value = 2 * float(student_t.sf(abs(middle) / spread, count - 1))
    return Difference(middle, count, middle - reach, middle + reach, p_value)


def difference(arm: Arm, base: Arm) -> Difference | None:
    """`arm` minus `base` on the splits that both have; None with fewer than two."""
    ours, theirs = (
        {name: (run, row) for run in one.runs for name, row in zip(run.split_names, run.rows, strict=True)}
        for one in (arm, base)
    )
    shared = [name for name in ours if name in theirs]
    if arm is base or len(shared) < 2:
        return None
    gaps = [ours[name][1][ERROR] - theirs[name][1][ERROR] for name in shared]
    return corrected_difference(gaps, statistics.fmean(_ratio(*ours[name]) for name in shared))


def _ratio(run: Record, row: Mapping[str, float]) -> float:
    """Test cases / training cases of a split. Runs of earlier versions did not write the latter."""
    rest = row["test/cases"] * (1 - run.config.test) / run.config.test
    return row["test/cases"] / row.get("train/cases", run.config.train_cases or rest)


def share_of_gain(arm: Arm, name: str) -> float | None:
    """(best net - model) / (best net - teacher) in RMSE: 1 is as good as the ensemble, 0 as the best net by labels."""
    metrics = (f"{RMSE}_best-net", RMSE if name == "student" else f"{RMSE}_{name}", f"{RMSE}_teacher")
    net, own, teacher = (arm.mean(metric) for metric in metrics)
    if net is None or own is None or teacher is None or net == teacher:
        return None
    return (net - own) / (net - teacher)


def compare(records: Sequence[Record], skipped: Sequence[Skipped] = ()) -> Comparison:
    """Group runs into arms, and note what differs between the arms.

    Raises:
        UserError: there is no run.
    """
    left_out = left_out_notes(records, skipped)
    tables = _tables(records)
    data = sorted(tables)
    arms = [arm for name in data for arm in _arms(tables[name], name)]
    notes = [
        "Errors and RMSE are means over splits, on test cases that were used for no training and no choice; +- is the "
        "standard deviation over splits. Splits of one table share cases: an interval and its p are those of Nadeau "
        "and Bengio's corrected t test; there is none of a difference that is equal in all splits.",
        *(note for name in data for note in _notes([arm for arm in arms if arm.data == name], name)),
        *left_out,
    ]
    return Comparison(tuple(arms), tuple(data), tuple(notes))


def _tables(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of each table, by its name; tables of the same name are called by their paths."""
    paths: dict[str, set[str]] = defaultdict(set)
    for run in records:
        paths[run.card.data].add(run.table_path)
    tables: dict[str, list[Record]] = defaultdict(list)
    for run in records:
        name = run.card.data
        tables[name if len(paths[name]) == 1 else run.table_path or name].append(run)
    return tables


def _arms(records: Sequence[Record], data: str) -> list[Arm]:
    grouped: dict[Hashable, list[Record]] = defaultdict(list)
    for record in records:
        grouped[record.group or (record.label, repr(record.settings))].append(record)
    members = [sorted(runs, key=lambda run: (run.config.seed, str(run.path))) for runs in grouped.values()]
    firsts = [runs[0] for runs in members]
    names = unique_names([run.label for run in firsts], [run.settings for run in firsts])
    arms = [Arm(name, data, tuple(runs)) for name, runs in zip(names, members, strict=True)]
    return sorted(arms, key=lambda arm: (arm.runs[0].config.method != "cart", arm.name))


def _notes(arms: Sequence[Arm], data: str) -> list[str]:
    notes = []
    for arm in arms:
        splits = [name for run in arm.runs for name in run.split_names]
        if len(set(splits)) < len(splits):
            notes.append(f"{data}: {arm.name} has the same split several times.")
        differing = varying([run.settings for run in arm.runs])
        if differing:
            notes.append(f"{data}: runs of {arm.name} differ in {', '.join(differing)}.")
    for name in varying([arm.runs[0].settings for arm in arms]):
        if "." not in name:
            held = ", ".join(f"{arm.name} {show(arm.runs[0].settings[name])}" for arm in arms)
            notes.append(f"{data}: arms differ in {name}: {held}.")
    if any(len({len(run.rows) for run in arm.runs} | {len(arms[0].runs[0].rows)}) > 1 for arm in arms):
        notes.append(f"{data}: runs have different numbers of splits; differences use the splits that both arms have.")
    return notes
