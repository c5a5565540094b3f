"""Tables of cases: reading, checks, splits, and the encoding for learners."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kfrl.errors import UserError, missing_file, shortened, unknown, user_path

Values = NDArray[np.float64]
"""(cases, attributes): numbers, NaN where missing; of a nominal attribute the category's index, -1 if unknown."""
Cases = NDArray[np.float64]
"""(cases, attributes): continuous values scaled to [0, 1] on training cases, nominal ones as in `Values`."""
Labels = NDArray[np.int64]
"""(cases,): indices of classes."""
Rows = NDArray[np.bool_]
"""(cases,): a mask of cases."""

MISSING = ("", "?", "na", "n/a", "nan")
"""Cells without a value, in lower case."""
UNKNOWN = "?"
"""The category of a nominal attribute's missing values."""
SHOWN = 8


@dataclass(frozen=True)
class Attribute:
    """An input column of a table."""

    name: str
    categories: tuple[str, ...] | None = None
    """The categories of a nominal attribute; None for a continuous one."""


@dataclass(frozen=True)
class Table:
    """Cases with their classes."""

    name: str
    attributes: tuple[Attribute, ...]
    values: Values
    classes: tuple[str, ...]
    labels: Labels

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.labels)


@dataclass(frozen=True)
class Known:
    """A table that kfrl knows by name."""

    openml: int
    """Its number on OpenML."""
    file: str
    """The name of its CSV file, without the suffix."""
    nominal: str = ""
    positive: tuple[str, ...] = ()
    """Classes that are joined into one, against the rest. Empty: all classes are kept."""


SETS = {
    "breastcancer": Known(15, "breastcancer"),
    "ionosphere": Known(59, "ionosphere"),
    "glass": Known(41, "glass"),
    "soybean": Known(42, "soybean", nominal="all"),
    "sonar": Known(40, "sonar"),
    "letter": Known(6, "letter"),
    "letter-p1": Known(6, "letter", positive=("O",)),
    "letter-p2": Known(6, "letter", positive=tuple("ABCDEFGHIJKLM")),
    "adult": Known(1590, "adult"),
    "covtype": Known(1596, "covtype", positive=("2",)),
}
"""The tables of the papers: Breiman and Shang's five, and the free ones of Bucila et al., who make COVTYPE binary by
its largest class."""


# --- reading ------------------------------------------------------------------------------------------------


def load_table(name: str, target: str, nominal: Sequence[str], data_dir: Path | None) -> Table:
    """Read a table by name or path.

    Args:
        name: One of `SETS`, `openml:ID`, or the path of a CSV file.
        target: The column of the classes; not used for tables from OpenML, which name it.
        nominal: Columns to treat as nominal; `all` for every one.
        data_dir: Where the files of `SETS` are; the user's cache folder by default.

    Raises:
        UserError: no such table, or one that cannot be learned from; the message says why.
    """
    if name.casefold().startswith("openml:"):
        return _from_openml(name, name[7:], data_dir)
    if name.casefold() not in SETS:
        path = user_path(name)
        if path.is_file():
            return read_csv(path, target, nominal)
        if path.suffix or "/" in name:
            raise missing_file(path)
        raise unknown("table", name, SETS, "Or give openml:ID, or the path of a CSV file.")
    known = SETS[name.casefold()]
    table = _from_file_or_openml(known, target, nominal, data_dir)
    return _against_rest(table, name.casefold(), known.positive)


def _from_file_or_openml(known: Known, target: str, nominal: Sequence[str], data_dir: Path | None) -> Table:
    for folder in [data_dir.expanduser()] if data_dir else [_cache()]:
        for path in (folder / f"{known.file}.csv", folder / f"{known.file}.csv.gz"):
            if path.is_file():
                return read_csv(path, target, nominal or ([known.nominal] if known.nominal else []))
    return _from_openml(known.file, str(known.openml), data_dir)


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("kfrl")) / "tabular"


def _from_openml(name: str, number: str, data_dir: Path | None) -> Table:
    from sklearn.datasets import fetch_openml

    if not number.isdigit():
        raise UserError(f"Expected openml:ID with the number of a table of OpenML, e.g. openml:59, got {name!r}.")
    home = data_dir.expanduser() if data_dir else _cache()
    try:
        found = fetch_openml(data_id=int(number), as_frame=False, parser="liac-arff", data_home=str(home))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Table {number} of OpenML could not be downloaded: {error}. Without a network, put it into {home} as a "
            "CSV file with the table's name, or give the path of a CSV file."
        ) from None
    names = list(found.feature_names)
    columns = {column: _texts(found.data[:, index], found.categories.get(column)) for index, column in enumerate(names)}
    nominal = [column for column in names if column in found.categories]
    return table_of(name, columns, [str(label) for label in found.target], nominal, f"openml:{number}")


def _texts(column: NDArray[np.float64], categories: Sequence[str] | None) -> list[str]:
    if categories is None:
        return ["" if value is None or math.isnan(value) else repr(float(value)) for value in column]
    return ["" if value is None or math.isnan(value) else str(categories[int(value)]) for value in column]


def _against_rest(table: Table, name: str, positive: Sequence[str]) -> Table:
    if not positive:
        return Table(name, table.attributes, table.values, table.classes, table.labels)
    strange = [word for word in positive if word not in table.classes]
    if strange:
        raise UserError(f"{name}: the file has no class {strange[0]!r}, its classes are {_shown(table.classes)}.")
    inside = np.isin(np.array(table.classes)[table.labels], positive)
    word = "-".join(dict.fromkeys((positive[0], positive[-1])))
    return Table(name, table.attributes, table.values, ("rest", word), inside.astype(np.int64))


def read_csv(path: Path, target: str, nominal: Sequence[str] = ()) -> Table:
    """Read a CSV file with a header.

    Raises:
        UserError: no CSV file, no target column, or cells that do not fit their column; the message says where.
    """
    columns = read_columns(path)
    if target not in columns:
        raise unknown("target column", target, columns, f"{path} has these columns; name one with --target.")
    labels = columns.pop(target)
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    return table_of(name, columns, labels, nominal, str(path))


def read_columns(path: Path) -> dict[str, list[str]]:
    """The cells of a CSV file, column by column, without spaces around them.

    Raises:
        UserError: no CSV file.
    """
    if not path.is_file():
        raise missing_file(path)
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise UserError(f"{path} could not be read as a CSV file: {error}.") from None
    if len(rows) < 2:
        raise UserError(f"{path} holds no case: expected a header and a line for each case.")
    names = [name.strip() for name in rows[0]]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: several columns are called {twice[0]!r}. Give each its own name.")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise UserError(f"{path}, line {number}: {len(row)} cells, but the header has {len(names)} columns.")
    return {name: [row[index].strip() for row in rows[1:]] for index, name in enumerate(names)}


def table_of(
    name: str, columns: dict[str, list[str]], classes: Sequence[str], nominal: Sequence[str], source: str
) -> Table:
    """Make a table of cells, and check them.

    Args:
        name: What the table is called.
        columns: The attributes' cells.
        classes: The class of each case.
        nominal: Attributes to treat as nominal; `all` for every one.
        source: Where the cells are from, for messages.

    Raises:
        UserError: no attribute, a single class, a column without any value, or text among numbers.
    """
    if not columns:
        raise UserError(f"{source} has no column beside the target.")
    for word in nominal:
        if word != "all" and word not in columns:
            raise unknown("column in --nominal", word, columns)
    attributes = tuple(
        _attribute(name, cells, name in nominal or "all" in nominal, source) for name, cells in columns.items()
    )
    labels, kinds = _labels(classes, source)
    values = np.stack([numbers(attributes[i], cells) for i, cells in enumerate(columns.values())], axis=1)
    return Table(name, attributes, values, kinds, labels)


def _attribute(name: str, cells: Sequence[str], nominal: bool, source: str) -> Attribute:
    held = [cell for cell in cells if not _is_missing(cell)]
    if not held:
        raise UserError(f"{source}: column {name!r} has no value in any of its {len(cells):,} cells. Remove it.")
    texts = [cell for cell in held if not _is_number(cell)]
    if not nominal and not texts:
        return Attribute(name)
    if not nominal and len(texts) < len(held):
        line = cells.index(texts[0]) + 2
        raise UserError(
            f"{source}: column {name!r} has text where numbers are expected: {texts[0]!r} in line {line}, and "
            f"{len(held) - len(texts):,} of its {len(held):,} values are numbers. Correct it (a cell without a value "
            f"is empty or {UNKNOWN}), or make the column nominal: --nominal {name}"
        )
    unknown_too = [UNKNOWN] if len(held) < len(cells) else []
    return Attribute(name, (*_ordered(held), *unknown_too))


def _labels(classes: Sequence[str], source: str) -> tuple[Labels, tuple[str, ...]]:
    empty = [index for index, cell in enumerate(classes) if _is_missing(cell)]
    if empty:
        raise UserError(f"{source}: {len(empty):,} cases have no class, the first in line {empty[0] + 2}. Remove them.")
    names = _ordered(classes)
    if len(names) < 2:
        raise UserError(f"{source}: all cases are of one class, {names[0]!r}. Expected at least two classes.")
    index = {name: number for number, name in enumerate(names)}
    return np.array([index[cell] for cell in classes], dtype=np.int64), names


def numbers(attribute: Attribute, cells: Sequence[str]) -> Values:
    """One column of cells as `Values`."""
    if attribute.categories is None:
        return np.array([math.nan if _is_missing(cell) else float(cell) for cell in cells])
    index = {name: float(number) for number, name in enumerate(attribute.categories)}
    strange = index.get(UNKNOWN, -1.0)
    return np.array([strange if _is_missing(cell) else index.get(cell, strange) for cell in cells])


def values_like(attributes: Sequence[Attribute], columns: dict[str, list[str]], source: str) -> Values:
    """The values of these attributes in another table.

    Raises:
        UserError: a column is missing, or has text where numbers are expected.
    """
    for attribute in attributes:
        if attribute.name not in columns:
            raise unknown("column", attribute.name, columns, f"The model needs this column, and {source} lacks it.")
        if attribute.categories is None:
            for line, cell in enumerate(columns[attribute.name], 2):
                if not _is_missing(cell) and not _is_number(cell):
                    raise UserError(
                        f"{source}, line {line}: column {attribute.name!r} has text where numbers are expected: "
                        f"{cell!r}."
                    )
    return np.stack([numbers(attribute, columns[attribute.name]) for attribute in attributes], axis=1)


def _is_missing(cell: str) -> bool:
    return cell.casefold() in MISSING


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _ordered(cells: Iterable[str]) -> tuple[str, ...]:
    """The distinct cells: numbers by size, then words in alphabetical order."""
    return tuple(
        sorted(set(cells), key=lambda cell: (not _is_number(cell), float(cell) if _is_number(cell) else 0, cell))
    )


def _shown(names: Sequence[str]) -> str:
    return shortened(names, SHOWN)


# --- splits -------------------------------------------------------------------------------------------------


def draw(labels: Labels, share: float, generator: np.random.Generator) -> Rows:
    """Draw a share of the cases at random, the same of every class up to rounding (systematic sampling)."""
    order = np.lexsort((generator.random(len(labels)), labels))
    ticks = np.floor(np.arange(len(labels) + 1) * share + generator.random())
    picked = np.zeros(len(labels), dtype=bool)
    picked[order] = np.diff(ticks) > 0
    return picked


def check_classes(table: Table, share: float) -> None:
    """Refuse a table with a class that may have no training case when `share` of the cases are test cases.

    Raises:
        UserError: naming the class.
    """
    counts = np.bincount(table.labels, minlength=len(table.classes))
    for name, count in zip(table.classes, counts.tolist(), strict=True):
        if count - math.ceil(count * share) < 1:
            cases = "one case" if count == 1 else f"{count} cases"
            raise UserError(
                f"{table.name}: class {name!r} has {cases}, so a test share of {share:g} may leave none to train on. "
                "Add cases of it, join it with another class, or remove it."
            )


# --- encoding -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the encoded cases."""

    attribute: int
    category: int | None = None
    """Of a nominal attribute: the column is 1 where it has this category, else 0."""


@dataclass(frozen=True)
class Preparation:
    """Imputation, scaling and encoding of a table's values, fitted to training cases."""

    attributes: tuple[Attribute, ...]
    medians: tuple[float, ...]
    """The value in place of a missing one, for continuous attributes."""
    lows: tuple[float, ...]
    """The minimum of each attribute, which is scaled to 0."""
    spans: tuple[float, ...]
    """Maximum minus minimum, which is scaled to 1; 1 for a constant attribute."""

    @classmethod
    def of(cls, attributes: Sequence[Attribute], values: Values) -> Preparation:
        """Fit to the values of training cases."""
        medians, lows, spans = [], [], []
        for attribute, column in zip(attributes, values.T, strict=True):
            held = column[~np.isnan(column)]
            if attribute.categories is not None or not len(held):
                held = np.array([0.0, 1.0])
            medians.append(float(np.median(held)))
            lows.append(float(held.min()))
            spans.append(float(np.ptp(held)) or 1.0)
        return cls(tuple(attributes), tuple(medians), tuple(lows), tuple(spans))

    @property
    def nominal(self) -> NDArray[np.bool_]:
        """(attributes,): which are nominal."""
        return np.array([attribute.categories is not None for attribute in self.attributes])

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the encoded cases, in order."""
        return tuple(
            Column(index, category)
            for index, attribute in enumerate(self.attributes)
            for category in ([None] if attribute.categories is None else range(len(attribute.categories)))
        )

    def prepare(self, values: Values) -> Cases:
        """Fill in missing values, and scale."""
        filled = np.where(np.isnan(values), self.medians, values)
        return np.asarray((filled - np.array(self.lows)) / np.array(self.spans))

    def restore(self, cases: Cases) -> Values:
        """Undo the scaling."""
        return np.asarray(cases * np.array(self.spans) + np.array(self.lows))

    def encode(self, cases: Cases) -> NDArray[np.float64]:
        """(cases, columns): continuous attributes unchanged, nominal ones as one column for each category."""
        if not self.nominal.any():
            return cases
        columns = self.columns
        values = np.take(cases, [column.attribute for column in columns], axis=1)
        categories = np.array([np.nan if column.category is None else column.category for column in columns])
        return np.where(np.isnan(categories), values, values == categories)

    def condition(self, column: int, threshold: float) -> tuple[str, str]:
        """Two conditions as text: the column is at most the threshold, and it is above."""
        kind = self.columns[column]
        attribute = self.attributes[kind.attribute]
        if kind.category is not None and attribute.categories is not None:
            word = attribute.categories[kind.category]
            return f"{attribute.name} is not {word}", f"{attribute.name} is {word}"
        value = threshold * self.spans[kind.attribute] + self.lows[kind.attribute]
        return f"{attribute.name} <= {value:.4g}", f"{attribute.name} > {value:.4g}"
