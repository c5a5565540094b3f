"""The tables of the pages against the committed results of the runs."""

import csv
import itertools
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- measured: (\S+) -->\n+((?:\|.*\n)+)")
"""A comment that names the file of results, and the table below it."""
CODE = re.compile(r"`[^`]*`")
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*\.\d+(?![\w.-])")


RENDERED = ROOT / "docs" / "measured" / "fashion-mnist.csv"
"""Its table is printed by a benchmark and held against that."""


def tables(page: Path) -> Iterator[tuple[Path, str]]:
    for name, table in MARK.findall(page.read_text(encoding="utf-8")):
        yield ROOT / name, table


def known(path: Path) -> set[str]:
    """Every score, its spread and its interval as a page prints them; of several seeds also their mean and spread.

    Scores of games have one decimal, errors of classifiers two.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = "error_percent" in rows[0]
    score, digits = ("error_percent", 2) if images else ("mean", 1)
    values = [float(row[name]) for row in rows for name in (score, "std", "ci_low", "ci_high") if row.get(name)]
    names = ("arm", "data", "epochs") if images else ("arm", "game", "teachers", "steps")
    rows.sort(key=lambda row: [row[name] for name in names])
    for _, arm in itertools.groupby(rows, key=lambda row: [row[name] for name in names]):
        scores = [float(row[score]) for row in arm]
        values += [float(np.mean(scores))] + ([float(np.std(scores, ddof=1))] if len(scores) > 1 else [])
    return {f"{value:,.{digits}f}" for value in values}


def cells(table: str) -> list[list[str]]:
    """Of each row but the line of dashes."""
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
    return [row for row in rows if not set("".join(row)) <= {"-", ":"}]


def test_methods_side_by_side_are_printed_as_the_benchmark_prints_their_runs() -> None:
    ((name, printed),) = tables(ROOT / "docs" / "supervised-methods.md")
    assert name == RENDERED
    side_by_side = runpy.run_path(str(ROOT / "benchmarks" / "supervised_methods.py"))["side_by_side"]
    with RENDERED.open(newline="", encoding="utf-8") as rows:
        assert cells(printed) == cells(side_by_side(csv.DictReader(rows)))


PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if {name for name, _ in tables(page)} - {RENDERED}
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_score_of_a_table_is_that_of_a_run(page: Path) -> None:
    for results, table in tables(page):
        strange = [number for number in NUMBER.findall(CODE.sub("", table)) if number not in known(results)]
        assert not strange, f"{page.name} has numbers that {results.name} has not"


def test_the_readme_s_results_are_among_them() -> None:
    assert ROOT / "README.md" in PAGES
