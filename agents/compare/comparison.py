"""Comparison of methods: statistics per game over seeds, statistics across games, and notes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from agents.compare.arms import Arm, check_shared, describe_kinds, find_baseline, kinds_of, make_arms, settings
from agents.compare.records import RunRecord
from envs.games import Game
from kfrl.compare.facts import show, teachers_files, varying
from kfrl.compare.plots import GAMES, GUIDED, STUDENT, TRAINING, series, smooth
from kfrl.compare.stats import (
    REFERENCE_FRAMES,
    Scores,
    Strata,
    curve_height,
    first_reached,
    human_normalised,
    iqm_over_games,
    mean_over_games,
    median_over_games,
    optimality_gap,
    permutation_p,
    probability_of_improvement,
    reference_of,
    reference_scores,
    stratified_interval,
)
from kfrl.errors import UserError
from kfrl.runs.folder import Skipped

MIN_SEEDS = 3
"""Fewest runs for an interval."""
CURVE_BINS = 50
"""Points of a training curve, each the mean over the games that ended in its part of the run."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bootstrap interval over seeds, if there are enough of them."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Area:
    """Area under learning curves, divided by the length of the run: the mean return during training."""

    heights: tuple[float, ...]
    """The area of each seed, in raw points."""
    above_random: Estimate | None
    """Ratio of the areas above the score of random play, to the baseline; negative if the arm is below random play.
    None for the baseline, in a game without a known random score, or if the baseline's area is not above it."""
    ratio: Estimate | None
    """Ratio of the areas above 0, to the baseline: Rusu et al.'s transfer score. The score of random play may be far
    above 0. None for the baseline, or if its area is not above 0."""

    @property
    def height(self) -> float:
        """Mean over seeds, in raw points."""
        return statistics.fmean(self.heights)


@dataclass(frozen=True)
class Cell:
    """One arm in one game."""

    game: str
    arm: Arm
    score: Estimate
    """Mean over seeds of the final student's mean raw score."""
    scores: tuple[float, ...]
    """The score of each seed."""
    normalised: Estimate | None
    """`score` as human-normalised score; None for a game outside Atari-57."""
    difference: Estimate | None
    """Difference to the baseline's mean score, raw points."""
    p_value: float | None
    """Two-sided permutation p of that difference, exact for few seeds; None if an arm has only one run."""
    improvement: Estimate | None
    """Probability that a run of this arm has a higher score than one of the baseline."""
    alone: Area | None
    """Area of the student alone; None if a run did not evaluate it during training before the shortest curve's end."""
    training: Area | None
    """Area of the training games, with the method's links if any."""
    reached: tuple[float | None, ...]
    """The step at which the student alone of each seed first reached the baseline's final mean score; None if never."""

    @property
    def runs(self) -> Sequence[RunRecord]:
        """Its runs, by seed."""
        return self.arm.runs[self.game]

    @property
    def steps_to_baseline(self) -> float | None:
        """Median of `reached`; None if at least half of the seeds never reached it, or without a baseline."""
        median = statistics.median(float("inf") if step is None else step for step in self.reached or (None,))
        return None if median == float("inf") else median


@dataclass(frozen=True)
class Aggregate:
    """Statistics of one arm over all common games, in human-normalised scores."""

    arm: Arm
    runs: int
    iqm: Estimate
    median: Estimate
    mean: Estimate
    optimality_gap: Estimate
    improvement: Estimate | None
    """Mean over games of the probability that a run of this arm has a higher score than one of the baseline."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs on games: all that `kfrl compare` shows."""

    arms: tuple[Arm, ...]
    baseline: Arm | None
    games: tuple[str, ...]
    cells: tuple[Cell, ...]
    """The cells by game, then in the order of `arms`."""
    common_games: tuple[str, ...]
    """Games of the aggregates: the Atari-57 games of the baseline, or without a baseline those of any arm."""
    aggregates: tuple[Aggregate, ...]
    """Aggregates of the arms with runs in all common games; empty for a single game."""
    notes: tuple[str, ...]
    """Sentences needed to interpret the numbers."""


def compare(
    records: Sequence[RunRecord],
    skipped: Sequence[Skipped] = (),
    baseline: str | None = None,
    allow_mixed: bool = False,
) -> Comparison:
    """Compare finished runs.

    Args:
        records: The runs.
        skipped: Folders that were left out, for the notes.
        baseline: Name of the arm or method that the others are compared with; None: scratch, if there is one.
        allow_mixed: Accept runs with different budgets and rules.

    Raises:
        UserError: there are no runs, no such baseline, mixed runs without `allow_mixed`, or no game with two arms.
    """
    if not records:
        raise UserError(f"No run is left to compare. {' '.join(skipped_notes(skipped))}".rstrip())
    records, copies = _without_copies(records)
    skipped = (*skipped, *copies)
    if not allow_mixed:
        check_shared(records)
    arms = make_arms(records)
    games = tuple(sorted({record.game for record in records}))
    if not allow_mixed:
        _check_same_game(arms, games)
    base, missing_base = find_baseline(arms, baseline)
    cells = tuple(_cell(arm, game, base) for game in games for arm in arms if game in arm.runs)
    common = _common_games(arms, games, base)
    aggregates = _aggregates(arms, common, base) if len(common) > 1 else ()
    notes = _notes(records, skipped, arms, games, common, missing_base)
    return Comparison(tuple(arms), base, games, cells, common, aggregates, notes)


def _without_copies(records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[Skipped]]:
    """Leave out copies of runs: those with exactly the same scores and curve."""
    kept: dict[Any, RunRecord] = {}
    copies = []
    for record in records:
        key = (record.game, record.config.seed, record.final.scores, repr(record.rows))
        first = kept.setdefault(key, record)
        if first is not record:
            copies.append(Skipped(record.path, f"a copy of {first.path}"))
    return list(kept.values()), copies


def _check_same_game(arms: Sequence[Arm], games: Sequence[str]) -> None:
    if len(arms) > 1 and all(sum(game in arm.runs for arm in arms) == 1 for game in games):
        held = "; ".join(f"{arm.name}: {', '.join(Game(game).title for game in arm.runs)}" for arm in arms)
        raise UserError(
            f"No game was played by two arms, so nothing can be compared ({held}). Add runs of the same game, or "
            "print each by itself with --allow-mixed."
        )


# --- one game -----------------------------------------------------------------------------------------------


def _cell(arm: Arm, game: str, baseline: Arm | None) -> Cell:
    runs = arm.runs[game]
    base = list(baseline.runs.get(game, ())) if baseline is not None else []
    end = min(run.last_step for run in (*runs, *base))
    ours, theirs = _scores(runs), _scores(base)
    score = estimate([ours], mean_over_games)
    others = base if arm is not baseline else []
    floor = _random_score([*runs, *base])
    return Cell(
        game=game,
        arm=arm,
        score=score,
        scores=tuple(ours),
        normalised=_normalised(score, runs[0]),
        difference=_difference(ours, theirs) if others else None,
        p_value=permutation_p(ours, theirs) if others and min(len(ours), len(theirs)) > 1 else None,
        improvement=improvement([ours], [theirs]) if others else None,
        alone=_area([_alone(run, end) for run in runs], [_alone(run, end) for run in others], floor),
        training=_area([_training(run, end) for run in runs], [_training(run, end) for run in others], floor),
        reached=tuple(_reached(run, statistics.fmean(theirs)) for run in runs) if base else (),
    )


def _scores(runs: Iterable[RunRecord]) -> list[float]:
    return [run.score for run in runs]


def estimate(strata: Strata, statistic: Callable[[Sequence[Scores]], Scores]) -> Estimate:
    """A statistic of scores (n_i,) with its interval, if every stratum has enough runs."""
    samples = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    value = float(statistic(samples))
    if any(len(sample) < MIN_SEEDS for sample in samples):
        return Estimate(value)
    low, high = stratified_interval(samples, statistic)
    # If all draws are equal, e.g. if one arm wins every pair, the interval has no width.
    return Estimate(value, low, high) if low < high else Estimate(value)


def _random_score(runs: Iterable[RunRecord]) -> float | None:
    """The score of random play; None if unknown under the rules of these runs."""
    found = {reference_of(run.game, run.protocol.max_frames) for run in runs}
    reference = found.pop() if len(found) == 1 else None
    return None if reference is None else reference.random


def _normalised(score: Estimate, run: RunRecord) -> Estimate | None:
    def norm(points: float | None) -> float | None:
        return None if points is None else human_normalised(points, run.game, run.protocol.max_frames)

    value = norm(score.value)
    return None if value is None else Estimate(value, norm(score.low), norm(score.high))


def _difference(ours: ArrayLike, theirs: ArrayLike) -> Estimate:
    return estimate([ours, theirs], lambda drawn: drawn[0].mean(axis=-1) - drawn[1].mean(axis=-1))


def improvement(ours: Strata, theirs: Strata) -> Estimate:
    """Probability of improvement, (n_i,) and (m_i,) scores for each game."""
    games = len(ours)
    return estimate([*ours, *theirs], lambda drawn: probability_of_improvement(drawn[:games], drawn[games:]))


def _alone(run: RunRecord, end: float) -> float | None:
    steps, values = series(run.rows, STUDENT)
    return curve_height(steps, values, end) if len(steps) > 1 and steps[0] < end else None


def _training(run: RunRecord, end: float) -> float | None:
    """The height of the training curve; None without games, or if another net than the run's acted in some of them."""
    if any(GUIDED in row for row in run.rows):
        return None
    curve = smooth(run.rows, TRAINING, np.linspace(end / CURVE_BINS, end, CURVE_BINS), GAMES)
    height = float(curve.mean())
    return None if np.isnan(height) else height


def _area(ours: Sequence[float | None], theirs: Sequence[float | None], floor: float | None) -> Area | None:
    heights = [height for height in ours if height is not None]
    others = [height for height in theirs if height is not None]
    if len(heights) < len(ours):
        return None
    known = bool(others) and len(others) == len(theirs)
    return Area(
        tuple(heights),
        above_random=_ratio(heights, others, floor) if known and floor is not None else None,
        ratio=_ratio(heights, others, 0.0) if known else None,
    )


def _ratio(raw: Sequence[float], baseline: Sequence[float], floor: float) -> Estimate | None:
    """The ratio of the means above `floor`; None if the baseline's mean is not above it."""
    ours, theirs = ([height - floor for height in heights] for heights in (raw, baseline))
    if statistics.fmean(theirs) <= 0:
        return None
    value = statistics.fmean(ours) / statistics.fmean(theirs)
    # Every draw has a ratio only if all areas of the baseline are above 0.
    if min(theirs) <= 0:
        return Estimate(value)
    return estimate([ours, theirs], lambda drawn: drawn[0].mean(axis=-1) / drawn[1].mean(axis=-1))


def _reached(run: RunRecord, threshold: float) -> float | None:
    return first_reached(*series(run.rows, STUDENT), threshold)


# --- across games -------------------------------------------------------------------------------------------


def _common_games(arms: Sequence[Arm], games: Sequence[str], baseline: Arm | None) -> tuple[str, ...]:
    runs = {game: [run for arm in arms for run in arm.runs.get(game, ())] for game in games}
    known = [game for game in games if all(reference_of(game, run.protocol.max_frames) for run in runs[game])]
    return tuple(game for game in known if baseline is None or game in baseline.runs)


def _aggregates(arms: Sequence[Arm], games: Sequence[str], baseline: Arm | None) -> tuple[Aggregate, ...]:
    whole = [arm for arm in arms if not set(games) - set(arm.runs)]
    return tuple(_aggregate(arm, games, baseline) for arm in whole)


def _aggregate(arm: Arm, games: Sequence[str], baseline: Arm | None) -> Aggregate:
    strata = _normalised_scores(arm, games)
    compared = baseline is not None and arm is not baseline
    return Aggregate(
        arm=arm,
        runs=sum(map(len, strata)),
        iqm=estimate(strata, iqm_over_games),
        median=estimate(strata, median_over_games),
        mean=estimate(strata, mean_over_games),
        optimality_gap=estimate(strata, optimality_gap),
        improvement=improvement(strata, _normalised_scores(baseline, games)) if baseline and compared else None,
    )


def _normalised_scores(arm: Arm, games: Sequence[str]) -> list[list[float]]:
    normalised = [[human_normalised(run.score, game) for run in arm.runs[game]] for game in games]
    return [[score for score in scores if score is not None] for scores in normalised]


# --- notes --------------------------------------------------------------------------------------------------


def _notes(
    records: Sequence[RunRecord],
    skipped: Sequence[Skipped],
    arms: Sequence[Arm],
    games: Sequence[str],
    common: Sequence[str],
    missing_base: str,
) -> tuple[str, ...]:
    found = [
        "Scores are those of the final student alone; no checkpoint was chosen by its score. n counts runs.",
        _shared_note(records),
        *_baseline_note(missing_base),
        *_seed_notes(arms),
        *_cell_notes(arms, games, common),
        *_difference_notes(arms),
        *_version_notes(records),
        *_teacher_notes(records),
        *_source_notes(records),
        *_caveats(records),
        *skipped_notes(skipped),
    ]
    return tuple(found)


def _shared_note(records: Sequence[RunRecord]) -> str:
    kinds = kinds_of(records)
    if len(kinds) == 1:
        first = records[0]
        return (
            f"All {len(records)} runs share their budget ({first.config.steps:,} agent steps), their rules of play "
            f"({first.protocol.name}, {first.protocol.rules}), {len(first.final.scores)} final games and "
            f"{'the most probable' if first.final.greedy else 'sampled'} actions."
        )
    return f"MIXED, because --allow-mixed was given. Not like for like: {'; '.join(describe_kinds(kinds))}."


def _baseline_note(missing: str) -> list[str]:
    return [f"No differences, P(improvement) and transfer scores: {missing}."] if missing else []


def _seed_notes(arms: Sequence[Arm]) -> list[str]:
    counts = {f"{arm.name} on {Game(game).title}": len(runs) for arm in arms for game, runs in arm.runs.items()}
    notes = []
    if max(counts.values()) >= MIN_SEEDS:
        notes.append(
            "p: the share, among all ways to divide the runs over the two arms, of those with at least the same "
            "difference; for 3 against 3 runs it is never below 0.10. A number that is equal in all bootstrap draws, "
            "such as P = 1, has no interval."
        )
    few = [f"{cell} ({count})" for cell, count in counts.items() if count < MIN_SEEDS]
    if few:
        notes.append(f"Fewer than {MIN_SEEDS} seeds, so no interval: {', '.join(few)}.")
    if MIN_SEEDS in counts.values():
        notes.append(
            "The interval of 3 seeds in a game is their range; it contains the true mean less often than 95 % of the "
            "time."
        )
    if len(set(counts.values())) > 1:
        notes.append(f"Seeds per cell differ: {min(counts.values())} to {max(counts.values())}.")
    for arm in arms:
        for game, runs in arm.runs.items():
            seeds = [run.config.seed for run in runs]
            again = sorted({seed for seed in seeds if seeds.count(seed) > 1})
            if again:
                notes.append(f"{arm.name} on {Game(game).title} has several runs of seed {', '.join(map(str, again))}.")
    return notes


def _cell_notes(arms: Sequence[Arm], games: Sequence[str], common: Sequence[str]) -> list[str]:
    notes = []
    missing = [f"{arm.name} on {Game(game).title}" for game in games for arm in arms if game not in arm.runs]
    if missing:
        notes.append(f"Cells without a run: {', '.join(missing)}.")
    left_out = [arm.name for arm in arms if set(common) - set(arm.runs)]
    if len(common) > 1 and left_out:
        notes.append(f"Not in the table across games, because a game is missing: {', '.join(left_out)}.")
    unknown_games = [Game(game).title for game in games if game not in reference_scores()]
    if unknown_games:
        notes.append(f"Without a human score, so not normalised: {', '.join(unknown_games)}.")
    caps = {run.protocol.max_frames for arm in arms for run in arm.all_runs} - {REFERENCE_FRAMES}
    if caps:
        notes.append(
            f"Not normalised, and without area above random: scores with a cap of {_values(sorted(caps))} frames. The "
            f"human and random scores have a cap of {REFERENCE_FRAMES:,}."
        )
    return notes


def _difference_notes(arms: Sequence[Arm]) -> list[str]:
    """Notes on settings that differ, other than game, seed, method and teachers."""
    notes = []
    for arm in arms:
        facts = [_facts_within(run) for run in arm.all_runs]
        within = [f"{name} ({_values(fact[name] for fact in facts)})" for name in varying(facts)]
        if within:
            notes.append(f"Runs of {arm.name} differ in {', '.join(within)}.")
    facts = [settings(arm.all_runs[0]) for arm in arms]
    for name in varying(facts):
        held = ", ".join(
            f"{arm.name} {show(fact[name])}" for arm, fact in zip(arms, facts, strict=True) if name in fact
        )
        notes.append(f"Arms differ in {name}: {held}.")
    return notes


def _facts_within(run: RunRecord) -> dict[str, Any]:
    """The facts in which the runs of an arm may differ only if the user or a sweep named the arm."""
    files = teachers_files(run.config.teacher_sha256)
    known = {"teacher.file": files} if files else {}
    return {"method": run.config.label, "teachers": run.config.teachers, **known, **settings(run)}


def _values(values: Iterable[Any]) -> str:
    return " / ".join(dict.fromkeys(show(value) for value in values))


def _version_notes(records: Sequence[RunRecord]) -> list[str]:
    notes = []
    commits = sorted({record.card.commit[:8] for record in records})
    if len(commits) > 1:
        notes.append(f"The runs were made by {len(commits)} commits of the code: {', '.join(commits)}.")
    for library in varying([record.final.versions for record in records]):
        used = _values(record.final.versions[library] for record in records if library in record.final.versions)
        notes.append(f"The runs were made with several versions of {library}: {used}.")
    return notes


def _teacher_notes(records: Sequence[RunRecord]) -> list[str]:
    taught = [record for record in records if record.config.teacher_names]
    if not taught:
        return []
    note = "The frames of the teachers' training are not part of the budget; they are counted separately."
    if any(record.teacher_frames is None for record in taught):
        note += " Unknown: they are not in a teacher's file, or it cannot be read here."
    return [note]


def _source_notes(records: Sequence[RunRecord]) -> list[str]:
    if not any(record.source_frames for record in records):
        return []
    return ["Frames of source games are not part of the budget; they are counted separately."]


def _caveats(records: Sequence[RunRecord]) -> list[str]:
    return [f"{record.path}: {record.card.caveat}" for record in records if record.card.caveat]


def skipped_notes(skipped: Sequence[Skipped]) -> list[str]:
    """A sentence on the folders that were left out, if any."""
    if not skipped:
        return []
    reasons = "; ".join(f"{entry.path} ({entry.reason.rstrip('.')})" for entry in skipped)
    return [f"Left out, {len(skipped)} in all: {reasons}."]
