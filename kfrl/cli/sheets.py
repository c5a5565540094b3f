"""The tables of `kfrl compare`, for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from agents.compare.comparison import Aggregate, Area, Cell, Comparison, Estimate
from agents.compare.records import RunRecord
from agents.scores.quoted import quoted_scores
from envs.games import Game
from kfrl.compare.sheet import Sheet
from kfrl.compare.stats import human_normalised, top_of

QUOTED = (
    "Quoted scores were published by others, under their protocols and budgets; no number above uses them. ~ marks \
scores that the Knowledge Flow paper read off plots."
)
FEW = 5
"""Up to this many seeds, the table shows the score of each."""
NONE = "-"
LAST_GAMES = 100
"""Number of training games in a full report."""

Row = Mapping[str, Any]


TOP = 3
"""Number of best runs that papers report."""


def top_sheet(what: str, scores: Mapping[str, Sequence[float]], higher_is_better: bool = True) -> Sheet:
    """For each arm with more than `TOP` runs, the mean of the best `TOP`, and its expected value if all are equal."""
    columns = ["arm", "n", "all, mean +- std", f"top {TOP} of n", "by chance"]
    tops = {name: top_of(held, TOP, higher_is_better) for name, held in scores.items() if len(held) > TOP}
    rows = [
        [name, str(top.n), f"{top.mean:,.2f} +- {top.std:,.2f}", f"{top.top:,.2f}", f"{top.by_chance:,.2f}"]
        for name, top in tops.items()
    ]
    title = f"{what}: mean of the top {TOP} runs, as papers report it, and its expectation for n equal runs (by chance)"
    return Sheet(title, columns, rows)


def game_sheets(comparison: Comparison, game: str) -> tuple[Sheet, Sheet, Sheet]:
    """A game's sheets: final scores; learning and cost; training games."""
    cells = [cell for cell in comparison.cells if cell.game == game]
    base = comparison.baseline.name if comparison.baseline and game in comparison.baseline.runs else None
    return _score_sheet(cells, base), _learning_sheet(cells, base), _training_sheet(cells)


def _training_sheet(cells: Sequence[Cell]) -> Sheet:
    """The mean of the last `LAST_GAMES` training games, at each number of frames that a run has a report for."""
    budgets = sorted({report.frames for cell in cells for run in cell.runs for report in run.final.training[:-1]})
    means = [[_last_games(cell.runs, budget) for budget in (*budgets, None)] for cell in cells]
    rows = [
        [cell.arm.name, str(len(cell.runs)), *found]
        for cell, found in zip(cells, means, strict=True)
        if set(found) != {NONE}
    ]
    columns = ["arm", "seeds", *(f"at {budget:,} frames" for budget in budgets), "at the run's end"]
    return Sheet(
        f"{Game(cells[0].game).title}: the mean of the last {LAST_GAMES} training games (Machado et al.)", columns, rows
    )


def _last_games(runs: Sequence[RunRecord], budget: int | None) -> str:
    """Mean over the runs of their last training games at `budget` frames, or at the end if None.

    With the number of runs, if some have no report, and the number of games, if some have fewer than 100.
    """
    reports = [
        [r for r in run.final.training if r.frames == budget] if budget else run.final.training[-1:] for run in runs
    ]
    found = [report for held in reports for report in held]
    if not found:
        return NONE
    notes = [f"{len(found)} of {len(runs)} runs"] if len(found) < len(runs) else []
    games = [report.games for report in found]
    notes += [f"{number(games)} games"] if min(games) < LAST_GAMES else []
    few = f" ({', '.join(notes)})" if notes else ""
    return f"{sum(report.mean for report in found) / len(found):,.1f}{few}"


def _score_sheet(cells: Sequence[Cell], base: str | None) -> Sheet:
    few = all(len(cell.scores) <= FEW for cell in cells)
    columns = ["arm", "seeds", "score [95 %]", *(["of each seed"] if few else []), "human-normalised, % [95 %]"]
    if base:
        columns += [f"minus {base} [95 %]", "p", f"P(> {base}) [95 %]"]
    rows = []
    for cell in cells:
        row = [cell.arm.name, str(len(cell.scores)), points(cell.score)]
        row += [", ".join(f"{score:,.1f}" for score in cell.scores)] if few else []
        row.append(percent(cell.normalised))
        row += [points(cell.difference, "+"), p_of(cell.p_value), ratio(cell.improvement)] if base else []
        rows.append(row)
    runs = [run for cell in cells for run in cell.runs]
    games = sorted({len(run.final.scores) for run in runs})
    budgets = sorted({(run.config.steps, run.config.steps * run.protocol.frame_skip) for run in runs})
    title = (
        f"{Game(runs[0].game).title}: final student alone, {' or '.join(map(str, games))} games a run, after "
        + " or ".join(f"{steps:,} agent steps ({frames:,} frames)" for steps, frames in budgets)
    )
    return Sheet(title, columns, rows)


def _learning_sheet(cells: Sequence[Cell], base: str | None) -> Sheet:
    columns = ["arm"]
    for curve in ("alone", "training"):
        columns += [f"area,\n{curve}", f"above random,\n{curve} [95 %]", f"transfer,\n{curve} [95 %]"]
    columns += [f"steps to {base}'s\nscore (seeds)"] if base else []
    sources = any(run.source_frames for cell in cells for run in cell.runs)
    columns += ["teacher\nframes", *(["source\nframes"] if sources else [])]
    columns += ["parameters\ntrained", "parameters\ndeployed"]
    rows = [
        [
            cell.arm.name,
            *_area(cell.alone),
            *_area(cell.training),
            *([_steps_to_baseline(cell)] if base else []),
            frames(cell.runs),
            *([number(run.source_frames for run in cell.runs)] if sources else []),
            number(run.trained for run in cell.runs),
            number(run.deployed for run in cell.runs),
        ]
        for cell in cells
    ]
    return Sheet(f"{Game(cells[0].game).title}: learning and cost", columns, rows)


def _area(area: Area | None) -> tuple[str, str, str]:
    if area is None:
        return NONE, NONE, NONE
    return f"{area.height:,.2f}", ratio(area.above_random), ratio(area.ratio)


def _steps_to_baseline(cell: Cell) -> str:
    count = f"{sum(step is not None for step in cell.reached)}/{len(cell.reached)}"
    steps = cell.steps_to_baseline
    return f"{NONE} ({count})" if steps is None else f"{steps:,.0f} ({count})"


def aggregate_sheet(comparison: Comparison) -> Sheet:
    """Human-normalised scores over the common games."""
    base = comparison.baseline.name if comparison.baseline else None
    columns = ["arm", "runs", "IQM [95 %]", "median [95 %]", "mean [95 %]", "optimality gap [95 %]"]
    columns += [f"P(> {base}) [95 %]"] if base else []
    rows = []
    for found in comparison.aggregates:
        row = [found.arm.name, str(found.runs), *map(percent, _measures(found).values())]
        rows.append(row + ([ratio(found.improvement)] if base else []))
    titles = ", ".join(Game(game).title for game in comparison.common_games)
    return Sheet(f"Across {len(comparison.common_games)} games ({titles}): human-normalised scores, %", columns, rows)


def _measures(found: Aggregate) -> dict[str, Estimate]:
    return {
        "iqm": found.iqm,
        "median": found.median,
        "mean": found.mean,
        "optimality_gap": found.optimality_gap,
    }


def quoted_note(comparison: Comparison) -> str:
    """The note on quoted scores: their origin, and the frame caps of these runs."""
    caps = sorted({run.protocol.max_frames for arm in comparison.arms for run in arm.all_runs})
    return (
        f"{QUOTED} Games of these runs end after {' or '.join(f'{cap:,}' for cap in caps)} frames: do not compare them "
        "with quoted scores under another cap or an unknown cap (-)."
    )


def quoted_sheet(games: Iterable[str]) -> Sheet:
    """Published scores of these games."""
    rows = [
        [
            Game(entry.rom).title,
            entry.method,
            entry.teachers or NONE,
            entry.source,
            entry.protocol,
            f"{entry.max_frames:,}" if entry.max_frames else NONE,
            f"{'~' if entry.approximate else ''}{entry.score:,.10g}",
        ]
        for game in games
        for entry in quoted_scores()
        if entry.rom == game
    ]
    columns = ["game", "method", "teachers", "source", "how it was measured", "frame cap", "score"]
    return Sheet("QUOTED, not run here", columns, rows, left=5)


# --- cells --------------------------------------------------------------------------------------------------


def _interval(found: Estimate | None, form: str, factor: float = 1.0) -> str:
    if found is None:
        return NONE
    value = format(factor * found.value, form)
    if found.low is None or found.high is None:
        return value
    return f"{value} [{format(factor * found.low, form)}, {format(factor * found.high, form)}]"


def points(found: Estimate | None, sign: str = "") -> str:
    """Raw points."""
    return _interval(found, f"{sign},.1f")


def percent(found: Estimate | None) -> str:
    """A share, in percent."""
    return _interval(found, ",.1f", 100.0)


def ratio(found: Estimate | None) -> str:
    """A probability or a ratio."""
    return _interval(found, ",.2f")


def p_of(value: float | None) -> str:
    """A p value."""
    return NONE if value is None else f"{value:.3f}"


def number(values: Iterable[int | None]) -> str:
    """A count: one number if all runs have the same, else its range."""
    held = sorted({value for value in values if value is not None})
    if not held:
        return NONE
    return f"{held[0]:,}" if len(held) == 1 else f"{held[0]:,} to {held[-1]:,}"


def frames(runs: Sequence[RunRecord]) -> str:
    """The frames that the teachers of the runs were trained on."""
    counts = [run.teacher_frames for run in runs]
    return "unknown" if None in counts else number(counts)


# --- files --------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """The whole comparison as Markdown, which includes the plots from files in its folder."""
    parts = ["# Comparison"]
    for game in comparison.games:
        parts.append(f"## {Game(game).title}")
        for sheet in game_sheets(comparison, game):
            parts += [f"{sheet.title}.", sheet.markdown()] if sheet.rows else []
        parts.append(f"![Learning curves, mean and range over seeds](curves-{Game(game).file_name}.png)")
    if comparison.aggregates:
        sheet = aggregate_sheet(comparison)
        parts += ["## Across games", f"{sheet.title}.", sheet.markdown()]
    parts += ["## What to know beside the numbers", "\n".join(f"- {note}" for note in comparison.notes)]
    quoted = quoted_sheet(comparison.games)
    if quoted.rows:
        parts += ["## Quoted, not run here", quoted_note(comparison), quoted.markdown()]
    return "\n\n".join(parts) + "\n"


def csv_text(rows: Iterable[Row]) -> str:
    """Rows as CSV; unknown values are empty cells."""
    held = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(held[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(held)
    return text.getvalue()


def _columns(name: str, found: Estimate | None) -> dict[str, float | None]:
    value = found or Estimate(float("nan"))
    known = None if found is None else value.value
    return {name: known, f"{name}_low": value.low, f"{name}_high": value.high}


def cell_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A row for each arm in each game."""
    for cell in comparison.cells:
        yield {
            "game": cell.game,
            "arm": cell.arm.name,
            "method": cell.arm.method,
            "baseline": comparison.baseline.name if comparison.baseline else None,
            "agent_steps": number_cell(run.config.steps for run in cell.runs),
            "seeds": len(cell.runs),
            **_columns("score", cell.score),
            **_columns("human_normalised", cell.normalised),
            **_columns("difference", cell.difference),
            "difference_p": cell.p_value,
            **_columns("p_improvement", cell.improvement),
            "area_alone": cell.alone.height if cell.alone else None,
            **_columns("above_random_alone", cell.alone.above_random if cell.alone else None),
            **_columns("transfer_alone", cell.alone.ratio if cell.alone else None),
            "area_training": cell.training.height if cell.training else None,
            **_columns("above_random_training", cell.training.above_random if cell.training else None),
            **_columns("transfer_training", cell.training.ratio if cell.training else None),
            "steps_to_baseline": cell.steps_to_baseline,
            "seeds_that_reached_baseline": sum(step is not None for step in cell.reached) if cell.reached else None,
            "teacher_frames": number_cell(run.teacher_frames for run in cell.runs),
            "source_frames": number_cell(run.source_frames for run in cell.runs),
            "trained_parameters": number_cell(run.trained for run in cell.runs),
            "deployed_parameters": number_cell(run.deployed for run in cell.runs),
        }


def number_cell(values: Iterable[int | None]) -> int | None:
    """The count if all runs have the same, else None."""
    held = set(values)
    return held.pop() if len(held) == 1 else None


def run_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A row for each run."""
    for cell in comparison.cells:
        unknown = (None,) * len(cell.runs)
        alone = cell.alone.heights if cell.alone else unknown
        training = cell.training.heights if cell.training else unknown
        for run, area_alone, area_training in zip(cell.runs, alone, training, strict=True):
            yield {
                "run": str(run.path),
                "game": run.game,
                "arm": cell.arm.name,
                "method": run.config.label,
                "teachers": run.config.teachers,
                "seed": run.config.seed,
                "agent_steps": run.config.steps,
                "score": run.score,
                "last_100_training_games": run.final.training[-1].mean if run.final.training else None,
                "human_normalised": human_normalised(run.score, run.game, run.protocol.max_frames),
                "area_alone": area_alone,
                "area_training": area_training,
                "episodes": len(run.final.scores),
                "protocol": run.protocol.name,
                "fingerprint": run.protocol.fingerprint,
                "teacher_frames": run.teacher_frames,
                "source_frames": run.source_frames,
                "trained_parameters": run.trained,
                "deployed_parameters": run.deployed,
                "commit": run.card.commit,
            }


def aggregate_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A row for each arm across games."""
    for found in comparison.aggregates:
        row: dict[str, Any] = {"arm": found.arm.name, "games": " ".join(comparison.common_games), "runs": found.runs}
        for name, measure in _measures(found).items():
            row |= _columns(name, measure)
        yield row | _columns("p_improvement", found.improvement)
