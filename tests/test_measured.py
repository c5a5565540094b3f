"""The tables of the pages against the committed results of the runs."""

import csv
import itertools
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agents.teachers.store import ZOO, find_teacher
from envs.protocols import get_protocol

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


def test_the_zoo_s_table_has_the_scores_of_its_cards() -> None:
    page = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    rows = {
        name: rest
        for name, *rest in cells(page.split("## The zoo")[1].split("## Formats")[0])
        if name.startswith("`zoo:")
    }
    entries = [find_teacher(f"zoo:{path.stem}", ROOT / "runs") for path in sorted(ZOO.glob("*.safetensors"))]
    assert rows.keys() == {f"`{entry.reference}`" for entry in entries}
    for entry in entries:
        card, score = entry.card, entry.card.evaluation
        steps, shipped, _, random, human, _ = rows[f"`{entry.reference}`"]
        assert steps == f"{card.steps / 1e6:.1f}M"
        assert shipped == f"{score['mean']:,.1f} [{score['ci_low']:,.1f}, {score['ci_high']:,.1f}]"
        assert (random, human) == tuple(f"{score['reference'][who]:,.1f}" for who in ("random", "human"))
        # The page says that the shorter cap of `nature` ends none of these games.
        cap = get_protocol("nature", card.game)
        assert max(score["episode_steps"]) * cap.frame_skip < cap.max_frames


@pytest.mark.parametrize("path", sorted(ZOO.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_curve_of_an_agent_of_the_zoo_is_that_of_its_card(path: Path) -> None:
    card = find_teacher(f"zoo:{path.stem}", ROOT / "runs").card
    pages = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("a3c.md", "engines.md"))
    section = pages.split(f"### {path.stem.title()}\n")[1].split("\n##")[0]
    (_, *millions), (_, *scores) = cells(section[section.index("| million agent steps") :].split("\n\n")[0])
    curve = np.array(card.curve)
    for at, score in zip(millions, scores, strict=True):
        if "*" not in score:
            nearest = curve[np.abs(curve[:, 0] - float(at) * 1e6).argmin(), 1]
            printed = score.replace(",", "")
            assert f"{nearest:.{len(printed.partition('.')[2])}f}" == printed, f"after {at}M steps"
