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
from kfrl.compare.stats import human_normalised

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- measured: (\S+) -->\n+((?:\|.*\n)+)")
"""A comment that names the file of results, and the table below it."""
CODE = re.compile(r"`[^`]*`")
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*\.\d+(?![\w.-])")


ATARI = ROOT / "docs" / "measured" / "atari.csv"
METHODS = ROOT / "docs" / "measured" / "fashion-mnist.csv"
MINUTES = ROOT / "docs" / "measured" / "minutes-breakout"
RENDERED = {METHODS, MINUTES}
"""Their tables are printed by benchmarks and held against these."""


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
    assert name == METHODS
    side_by_side = runpy.run_path(str(ROOT / "benchmarks" / "supervised_methods.py"))["side_by_side"]
    with METHODS.open(newline="", encoding="utf-8") as rows:
        assert cells(printed) == cells(side_by_side(csv.DictReader(rows)))


def minutes_until_150() -> tuple[str, str]:
    """What the pages say of both: the score at the first point of 150 or more, and that after 20 times as long."""
    runs = runpy.run_path(str(ROOT / "benchmarks" / "minutes_to_score.py"))["scores"](MINUTES)
    until, _, score = next(row for row in runs["kfrl-flow"] if row[2] >= 150)
    rivals = [row for row in runs["sb3-ppo"] if row[0] <= 20 * until]
    assert runs["sb3-ppo"][-1][0] >= 20 * until and max(score for *_, score in rivals) < 150
    return f"{score:.1f} points after {until:.1f} minutes", f"{rivals[-1][2]:.1f} after {rivals[-1][0]:.0f}"


def test_the_minutes_until_a_score_are_those_of_the_runs() -> None:
    ((name, printed),) = tables(ROOT / "docs" / "performance.md")
    assert name == MINUTES
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "minutes_to_score.py"))
    assert cells(printed) == cells(benchmark["table"](benchmark["Options"]("table", out=MINUTES)))
    for page in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert all(said in text for said in minutes_until_150())


PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if {name for name, _ in tables(page)} - RENDERED
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_score_of_a_table_is_that_of_a_run(page: Path) -> None:
    for results, table in (held for held in tables(page) if held[0] not in RENDERED):
        strange = [number for number in NUMBER.findall(CODE.sub("", table)) if number not in known(results)]
        assert not strange, f"{page.name} has numbers that {results.name} has not"


def test_the_readme_s_results_are_among_them() -> None:
    assert ROOT / "README.md" in PAGES


def test_every_score_in_the_readme_s_text_is_that_of_a_run() -> None:
    text = CODE.sub("", re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL))
    scores = re.findall(r"(?<![\w.-])\d[\d,]*\.\d(?![\w.])", text)
    assert "400.3" in scores
    of_minutes = re.findall(r"\d+\.\d", " ".join(minutes_until_150()))
    assert set(scores) <= known(ATARI) | set(of_minutes)


def test_the_cost_at_the_top_of_the_results_is_that_of_the_runs() -> None:
    with ATARI.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["steps"]]
    timed = [row for row in rows if row["hours"]]
    steps, of_timed = (sum(int(row["steps"]) for row in part) for part in (rows, timed))
    hours = sum(float(row["hours"]) for row in timed)
    rate = of_timed / hours / 3600
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert f"from {len(rows)} runs and {steps / 1e6:.0f}M agent steps" in page
    assert f"for {len(timed)} of these runs: {of_timed / 1e6:.1f}M steps in {hours:.1f} hours" in page
    assert f"{rate:.0f} steps a second, all of them took {steps / rate / 3600:.0f} hours" in page
    one = 40e6 / rate / 3600
    assert f"40M steps would take {one:.0f} hours, and the 25 runs of one of its cells {25 * one / 24:.0f} days" in page


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


FLOW, POLICIES = "knowledge-flow", "knowledge-flow --link-heads policies"
# Breakout's runs of these arms have a learning rate of their own in the arm's name.
BREAKOUT = "knowledge-flow --lr 0.001"
STRANGERS = f"{BREAKOUT} --link-heads policies, of teachers with other actions too (not kept)"
COMPARED = [
    ("results", "[Alien](knowledge-flow.md#teachers-of-other-games) {ours} against {theirs} (p = {p})", FLOW, "a3c"),
    ("results", "ChopperCommand {ours} against {theirs} (p = {p}), Breakout 10.1 against 9.4", FLOW, "a3c"),
    ("results", "Breakout {ours} against {theirs} (p = {p}). With", BREAKOUT, "a3c --lr 0.001"),
    ("results", "in one shape, Alien {ours} (p = {p})", POLICIES, "a3c"),
    ("results", "ChopperCommand {ours} (each seed above each, p = {p})", POLICIES, "a3c"),
    ("results", "policies on Breakout, where they gave {ours} (six seeds, p = {p})", STRANGERS, "a3c --lr 0.001"),
    ("results", "| not shown | Alien {ours} against {theirs} (p = {p}), ChopperCommand 1,005.6", FLOW, "fine-tune"),
    ("results", "ChopperCommand {ours} against {theirs} (p = {p}), Breakout 10.1 against 7.0", FLOW, "fine-tune"),
    ("results", "Breakout {ours} against {theirs} of an earlier version (p = {p})", BREAKOUT, "fine-tune"),
    ("results", "| not shown | Alien {ours} against {theirs} (p = {p}), ChopperCommand", FLOW, "progressive"),
    ("results", "ChopperCommand {ours} against {theirs} (p = {p}) |", FLOW, "progressive"),
    ("knowledge-flow", "level with scratch in three games: Alien p = {p},", FLOW, "a3c"),
    ("knowledge-flow", "ChopperCommand p = {p}, Breakout", FLOW, "a3c"),
    ("knowledge-flow", "Breakout p = {p}. With the", BREAKOUT, "a3c --lr 0.001"),
    ("knowledge-flow", "biases as well, Alien (p = {p})", f"{FLOW} --keep-biases always", "a3c"),
    ("knowledge-flow", "and ChopperCommand (p = {p}) are higher", f"{FLOW} --keep-biases always", "a3c"),
    ("knowledge-flow", "and Breakout lower (p = {p})", f"{BREAKOUT} --keep-biases always", "a3c --lr 0.001"),
    ("knowledge-flow", "is above scratch on Alien (p = {p}, three seeds against six)", POLICIES, "a3c"),
    ("README", "it is above it on Alien (p = {p})", POLICIES, "a3c"),
    ("README", "and ChopperCommand (p = {p}), but", POLICIES, "a3c"),
]
"""A page, a sentence of it, and the arms that it compares in the game that it names, after 500,000 steps."""


def seeds_of(arm: str, game: str) -> list[float]:
    with ATARI.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["arm"], row["game"], row["steps"]) == (arm, game, "500000")]
    return [float(row["mean"]) for row in sorted(rows, key=lambda row: int(row["seed"]))]


def exact_p(ours: list[float], theirs: list[float]) -> float:
    """Two-sided permutation p of the difference of the means: the share of all regroupings that differ as much."""
    pooled = np.array([*ours, *theirs])
    chosen = np.array(list(itertools.combinations(range(len(pooled)), len(ours))))
    means = pooled[chosen].mean(axis=1)
    rest = (pooled.sum() - means * len(ours)) / len(theirs)
    seen = abs(np.mean(ours) - np.mean(theirs))
    return float((np.abs(means - rest) >= seen - 1e-9).mean())


@pytest.mark.parametrize(("page", "sentence", "arm", "other"), COMPARED, ids=lambda cell: cell[:40])
def test_a_sentence_that_compares_arms_is_that_of_their_runs(page: str, sentence: str, arm: str, other: str) -> None:
    path = ROOT / "README.md" if page == "README" else ROOT / "docs" / f"{page}.md"
    game = next(name for name in ("Breakout", "ChopperCommand", "Alien") if name in re.split(r"[{]", sentence)[0])
    rom = {"ChopperCommand": "chopper_command"}.get(game, game.lower())
    ours, theirs = seeds_of(arm, rom), seeds_of(other, rom)
    assert ours and theirs
    said = sentence.format(
        ours=f"{np.mean(ours):,.1f}", theirs=f"{np.mean(theirs):,.1f}", p=f"{exact_p(ours, theirs):.2f}"
    )
    assert said in " ".join(path.read_text(encoding="utf-8").split())


@pytest.mark.parametrize("game", ["alien", "chopper_command"])
def test_the_table_of_all_methods_is_that_of_their_runs(game: str) -> None:
    title = {"alien": "Alien", "chopper_command": "ChopperCommand"}[game]
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    head, *rows = cells(
        page.split(f"### {title}\n")[1].split(f"{title}: learning and cost")[0].split("frames).\n\n")[1]
    )
    assert len(rows) == 8
    for row in (dict(zip(head, row, strict=True)) for row in rows):
        arm = row["arm"].split(" (")[0]
        scores = seeds_of("knowledge-flow, before the fold" if arm == FLOW else arm, game)[: int(row["seeds"])]
        scratch = seeds_of("a3c", game)[:3]
        assert row["of each seed"] == ", ".join(f"{score:,.1f}" for score in scores)
        spread = f" [{min(scores):,.1f}, {max(scores):,.1f}]" if len(scores) > 2 else ""
        assert row["score [95 %]"] == f"{np.mean(scores):,.1f}{spread}"
        percent = 100 * np.mean([human_normalised(score, game) for score in scores])
        assert row["human-normalised, % [95 %]"].split(" [")[0] == f"{percent:.1f}"
        if arm != "a3c":
            assert row["minus a3c [95 %]"].split(" [")[0] == f"{np.mean(scores) - np.mean(scratch):+,.1f}"
            wins = np.mean([(ours > theirs) + (ours == theirs) / 2 for ours in scores for theirs in scratch])
            assert row["P(> a3c) [95 %]"].split(" [")[0] == f"{wins:.2f}"
            assert row["p"] == (f"{exact_p(scores, scratch):.3f}" if len(scores) > 1 else "-")
