"""What runs say about methods: per game over seeds, across games, and what has to be known beside the numbers."""

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
from kfrl.compare.facts import show, varying
from kfrl.compare.plots import STUDENT, TRAINING, series, smooth
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
"""Fewer runs get no interval."""
CURVE_BINS = 50
"""Points of a training curve, each the mean over the games that ended in its fiftieth of the run."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bootstrap interval over seeds, if there are enough of them."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Area:
    """Area under learning curves over the length of the run: the mean return along the way."""

    height: float
    """Mean over seeds, raw points."""
    above_random: Estimate | None
    """Area above random play's score, to the baseline's; below 0 where the arm is below random play. None for the
    baseline, in a game whose random score is not known, and unless the baseline's area is above it."""
    ratio: Estimate | None
    """To the baseline's, from 0 on, which random play may be far above: Rusu et al.'s transfer score. None for the
    baseline, and unless its area is above 0."""


@dataclass(frozen=True)
class Cell:
    """One arm in one game."""

    game: str
    arm: Arm
    score: Estimate
    """Mean over seeds of the final student's mean raw score."""
    scores: tuple[float, ...]
    """Seed by seed."""
    normalised: Estimate | None
    """The same in human-normalised scores; None for a game outside Atari-57."""
    difference: Estimate | None
    """To the baseline's mean score, raw points."""
    p_value: float | None
    """Two-sided permutation p of that difference, exact for few seeds; None where an arm is one run."""
    improvement: Estimate | None
    """Probability that a run of this arm beats one of the baseline."""
    alone: Area | None
    """Of the student alone; None if a run did not evaluate it along the way, before the shortest curve's end."""
    training: Area | None
    """Of the games played for training, with whatever help the method gives."""
    areas: tuple[float, ...]
    """Seed by seed, the area under the training curve; empty if a run has none."""
    reached: tuple[float | None, ...]
    """For each seed the step at which the student alone first had the baseline's final mean score; None if never."""

    @property
    def runs(self) -> Sequence[RunRecord]:
        """Its runs, by seed."""
        return self.arm.runs[self.game]

    @property
    def steps_to_baseline(self) -> float | None:
        """Median of `reached`; None if half of the seeds or more never got there, or there is no baseline."""
        median = statistics.median(float("inf") if step is None else step for step in self.reached or (None,))
        return None if median == float("inf") else median


@dataclass(frozen=True)
class Aggregate:
    """One arm over all common games, in human-normalised scores."""

    arm: Arm
    runs: int
    iqm: Estimate
    median: Estimate
    mean: Estimate
    optimality_gap: Estimate
    improvement: Estimate | None
    """Mean over games of the probability that a run of this arm beats one of the baseline."""


@dataclass(frozen=True)
class Comparison:
    """Everything that `kfrl compare` shows."""

    arms: tuple[Arm, ...]
    baseline: Arm | None
    games: tuple[str, ...]
    cells: tuple[Cell, ...]
    """Game by game, in the order of `arms`."""
    common_games: tuple[str, ...]
    """What the aggregates are over: the Atari-57 games that the baseline, or else any arm, was run on."""
    aggregates: tuple[Aggregate, ...]
    """Of the arms that have runs in all common games; none for a single game."""
    notes: tuple[str, ...]
    """What has to be known beside the numbers, a sentence each."""


def compare(
    records: Sequence[RunRecord],
    skipped: Sequence[Skipped] = (),
    baseline: str | None = None,
    allow_mixed: bool = False,
) -> Comparison:
    """Compare finished runs.

    Args:
        records: The runs.
        skipped: What was left out, for the notes.
        baseline: Name of the arm or method that others are measured by; None is scratch, if it is there.
        allow_mixed: Accept runs that do not share their budget and rules of play.

    Raises:
        UserError: no runs, no such baseline, mixed runs without `allow_mixed`, or nothing to compare.
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
    """Runs with the very same scores and curve are one run in two folders."""
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
    training = [_training(run, end) for run in runs]
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
        areas=tuple(height for height in training if height is not None) if None not in training else (),
        training=_area(training, [_training(run, end) for run in others], floor),
        reached=tuple(_reached(run, statistics.fmean(theirs)) for run in runs) if base else (),
    )


def _scores(runs: Iterable[RunRecord]) -> list[float]:
    return [run.score for run in runs]


def estimate(strata: Strata, statistic: Callable[[Sequence[Scores]], Scores]) -> Estimate:
    """A statistic of scores (n_i,) with its interval, if every stratum has enough runs for one."""
    samples = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    value = float(statistic(samples))
    if any(len(sample) < MIN_SEEDS for sample in samples):
        return Estimate(value)
    low, high = stratified_interval(samples, statistic)
    # Equal draws, e.g. of P where one arm wins every pair, would give an interval without width.
    return Estimate(value, low, high) if low < high else Estimate(value)


def _random_score(runs: Iterable[RunRecord]) -> float | None:
    """What random play scores under the rules that all of these runs share."""
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
    curve = smooth(run.rows, TRAINING, np.linspace(end / CURVE_BINS, end, CURVE_BINS), "charts/episodes")
    height = float(curve.mean())
    return None if np.isnan(height) else height


def _area(ours: Sequence[float | None], theirs: Sequence[float | None], floor: float | None) -> Area | None:
    heights = [height for height in ours if height is not None]
    others = [height for height in theirs if height is not None]
    if len(heights) < len(ours):
        return None
    known = bool(others) and len(others) == len(theirs)
    return Area(
        statistics.fmean(heights),
        above_random=_ratio(heights, others, floor) if known and floor is not None else None,
        ratio=_ratio(heights, others, 0.0) if known else None,
    )


def _ratio(raw: Sequence[float], baseline: Sequence[float], floor: float) -> Estimate | None:
    """Of means above `floor`; None unless the baseline's is above it."""
    ours, theirs = ([height - floor for height in heights] for heights in (raw, baseline))
    if statistics.fmean(theirs) <= 0:
        return None
    value = statistics.fmean(ours) / statistics.fmean(theirs)
    # A baseline whose every draw is above 0 has a ratio in every draw.
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


# --- what has to be known beside the numbers ----------------------------------------------------------------


def _notes(
    records: Sequence[RunRecord],
    skipped: Sequence[Skipped],
    arms: Sequence[Arm],
    games: Sequence[str],
    common: Sequence[str],
    missing_base: str,
) -> tuple[str, ...]:
    found = [
        "Scores are those of the final student, alone; no checkpoint was chosen by its score. n counts runs.",
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
            "p: how much of all ways to divide the runs over the two arms differs as much or more; of 3 against 3 runs "
            "it is never below 0.10. A number that no bootstrap draw changes, as P = 1, stands without an interval."
        )
    few = [f"{cell} ({count})" for cell, count in counts.items() if count < MIN_SEEDS]
    if few:
        notes.append(f"Fewer than {MIN_SEEDS} seeds, so no interval: {', '.join(few)}.")
    if MIN_SEEDS in counts.values():
        notes.append(
            "The interval of 3 seeds in a game is their range; it holds the true mean less often than 95 % of the time."
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
        notes.append(f"Not in the table across games, for want of a game: {', '.join(left_out)}.")
    unknown_games = [Game(game).title for game in games if game not in reference_scores()]
    if unknown_games:
        notes.append(f"Without a human score, so not normalised: {', '.join(unknown_games)}.")
    caps = {run.protocol.max_frames for arm in arms for run in arm.all_runs} - {REFERENCE_FRAMES}
    if caps:
        notes.append(
            f"Not normalised, and no area above random: scores with a cap of {_values(sorted(caps))} frames. The human "
            f"and random scores are of games of {REFERENCE_FRAMES:,}."
        )
    return notes


def _difference_notes(arms: Sequence[Arm]) -> list[str]:
    """Settings that differ, other than game, seed, method and teachers."""
    notes = []
    for arm in arms:
        facts = [{"method": run.config.label, "teachers": run.config.teachers, **settings(run)} for run in arm.all_runs]
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


def _values(values: Iterable[Any]) -> str:
    return " / ".join(dict.fromkeys(show(value) for value in values))


def _version_notes(records: Sequence[RunRecord]) -> list[str]:
    notes = []
    commits = sorted({record.card.commit[:8] for record in records})
    if len(commits) > 1:
        notes.append(f"The runs were made by {len(commits)} states of the code: {', '.join(commits)}.")
    for library in varying([record.final.versions for record in records]):
        used = _values(record.final.versions[library] for record in records if library in record.final.versions)
        notes.append(f"The runs were made with several versions of {library}: {used}.")
    return notes


def _teacher_notes(records: Sequence[RunRecord]) -> list[str]:
    taught = [record for record in records if record.config.teacher_names]
    if not taught:
        return []
    note = "What teachers were trained on is not part of the budget; it is counted apart."
    if any(record.teacher_frames is None for record in taught):
        note += " Unknown: a teacher's file does not say, or cannot be read here."
    return [note]


def _source_notes(records: Sequence[RunRecord]) -> list[str]:
    if not any(record.source_frames for record in records):
        return []
    return ["Frames of source games are not part of the budget; they are counted apart."]


def _caveats(records: Sequence[RunRecord]) -> list[str]:
    return [f"{record.path}: {record.card.caveat}" for record in records if record.card.caveat]


def skipped_notes(skipped: Sequence[Skipped]) -> list[str]:
    """One sentence on what was left out, if anything."""
    if not skipped:
        return []
    reasons = "; ".join(f"{entry.path} ({entry.reason.rstrip('.')})" for entry in skipped)
    return [f"Left out, {len(skipped)} in all: {reasons}."]
