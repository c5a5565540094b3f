"""Arms of a comparison: runs that differ only in game and seed; and the names of arms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from agents.compare.records import RunRecord
from agents.config import TrainConfig
from envs.games import find_game
from kfrl.compare.facts import Facts, add_words, flat, show, teachers_files, unique_names, varying
from kfrl.errors import UserError, unknown

SCRATCH = "a3c"
"""The method without teachers, the default baseline."""

IDENTITY = {"game", "seed", "method", "algo", "teachers", "teacher_sha256"}
"""Settings that are in the name of an arm or in its place in a table."""
BOOKKEEPING = {
    "run_dir",
    "preset",
    "device",
    "curve_points",
    "curve_episodes",
    "report_frames",
    "checkpoint_every",
    "worker_timeout",
}
"""Settings without an effect on learning, or that only set defaults of others."""
SHARED = {"steps", "protocol", "eval_episodes"}
"""Settings that must be equal in all runs; `shared_facts` gives their values."""


@dataclass(frozen=True)
class Arm:
    """An arm of a comparison of games: runs with the same method and settings, over games and seeds."""

    name: str
    method: str
    runs: Mapping[str, Sequence[RunRecord]]
    """Game's name -> runs, sorted by seed."""

    @property
    def scratch(self) -> bool:
        """Whether it learns without teachers."""
        return all(run.config.method_name == SCRATCH for run in self.all_runs)

    @property
    def all_runs(self) -> list[RunRecord]:
        """The runs of all games."""
        return [run for runs in self.runs.values() for run in runs]


def shared_facts(record: RunRecord) -> dict[str, Any]:
    """The facts that must be equal to compare scores: budget, rules, number of games and choice of actions."""
    rules = {key: value for key, value in asdict(record.protocol).items() if key not in ("name", "game")}
    return {
        "steps": record.config.steps,
        "episodes": len(record.final.scores),
        "actions": "most probable" if record.final.greedy else "sampled",
        **rules,
    }


def settings(record: RunRecord) -> dict[str, Any]:
    """The other settings that affect learning, by name (`knowledge-flow.fold_at`)."""
    left_out = IDENTITY | BOOKKEEPING | SHARED | _unread(record.config)
    held = asdict(record.config.with_shape())
    held |= held.pop("methods")
    return flat({name: value for name, value in held.items() if name not in left_out})


def _unread(config: TrainConfig) -> set[str]:
    """Settings and groups of settings that this run does not use."""
    groups = {field.name for field in fields(config) if is_dataclass(getattr(config, field.name))}
    if not config.source_names:
        groups.add("source_games")
    if config.source_steps is None:
        groups.add("source_steps")
    return groups - {config.algo}


def make_arms(records: Sequence[RunRecord]) -> list[Arm]:
    """Group runs into arms, scratch first.

    Two runs belong to one arm if the user gave them the same name; or else if their arm in a sweep and their teachers
    are equal; or else if their method, teachers and settings are equal. Runs whose budget or rules differ within a game
    are in different arms.
    """
    apart = _varying_within_games(records)
    grouped: dict[Hashable, list[RunRecord]] = defaultdict(list)
    for record in records:
        grouped[_key(record, apart)].append(record)
    members = list(grouped.values())
    names = _names(members, apart)
    arms = [
        Arm(name, runs[0].config.label if _one_method(runs) else "several", _by_game(runs))
        for name, runs in zip(names, members, strict=True)
    ]
    return sorted(arms, key=lambda arm: (not arm.scratch, arm.name))


def _one_method(runs: Iterable[RunRecord]) -> bool:
    return len({run.config.label for run in runs}) == 1


def _varying_within_games(records: Sequence[RunRecord]) -> list[str]:
    by_game: dict[str, list[Facts]] = defaultdict(list)
    for record in records:
        by_game[record.game].append(shared_facts(record))
    return list(dict.fromkeys(name for facts in by_game.values() for name in varying(facts)))


def _key(record: RunRecord, apart: Sequence[str]) -> Hashable:
    facts = shared_facts(record)
    kept = tuple((name, facts[name]) for name in apart)
    if record.group is not None:
        return record.group, kept
    if record.sweep is not None:
        return record.sweep, _teachers(record.config), kept
    return record.config.label, _teachers(record.config), repr(settings(record)), kept


def _teachers(config: TrainConfig) -> tuple[str, ...]:
    """The identity of the teachers: their checksums, or for runs of earlier versions their paths."""
    return config.teacher_sha256 or config.teacher_names


def _by_game(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    games: dict[str, list[RunRecord]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.game, run.config.seed, str(run.path))):
        games[run.game].append(run)
    return dict(games)


def _names(members: Sequence[Sequence[RunRecord]], apart: Sequence[str]) -> list[str]:
    """A short, unique name for each arm: method and teachers, and settings only where needed to distinguish arms."""
    firsts = [runs[0] for runs in members]
    return unique_names([_short_name(run) for run in firsts], [_telling(run, apart) for run in firsts])


def _short_name(record: RunRecord) -> str:
    named = record.group or record.sweep
    if named is not None:
        return named
    sources = (find_game(name).name for name in record.config.source_names)
    return add_words(record.config.label, "+".join((*record.card.teachers, *sources)))


def _telling(record: RunRecord, apart: Sequence[str]) -> dict[str, Any]:
    shared = shared_facts(record)
    # Runs of an arm of a sweep may have other settings, so these do not distinguish it.
    own = {} if record.sweep is not None else settings(record)
    facts = {name: shared[name] for name in apart} | own
    # Last, because paths are long, and most arms with equal names differ in a setting.
    files = teachers_files(record.config.teacher_sha256) or record.config.teachers
    return facts | {"teachers": record.config.teachers, "teacher.file": files}


def check_shared(records: Sequence[RunRecord]) -> None:
    """Refuse runs whose budgets, rules or evaluations differ.

    Raises:
        UserError: the message names the differences, and the runs of each kind.
    """
    kinds = kinds_of(records)
    if len(kinds) > 1:
        raise UserError(
            "These runs do not share their budget and rules of play:\n"
            + "\n".join(f"  {kind}" for kind in describe_kinds(kinds))
            + "\nCompare runs of one kind, or give --allow-mixed to print them in one table; no mean is ever taken "
            "over two kinds."
        )


def kinds_of(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by the shared facts in which they differ, as text; a single kind, named "", if they do not differ."""
    facts = [shared_facts(record) for record in records]
    names = varying(facts)
    kinds: dict[str, list[RunRecord]] = defaultdict(list)
    for record, fact in zip(records, facts, strict=True):
        kinds[", ".join(f"{name} {show(fact[name])}" for name in names)].append(record)
    return dict(kinds)


def describe_kinds(kinds: Mapping[str, Sequence[RunRecord]], most: int = 6) -> list[str]:
    """A line for each kind with its runs; the most frequent kind is shortened to `most` runs."""
    commonest = max(kinds, key=lambda kind: len(kinds[kind]))
    lines = []
    for kind, runs in kinds.items():
        shown = runs[:most] if kind == commonest else runs
        more = f" and {len(runs) - len(shown)} more" if len(runs) > len(shown) else ""
        lines.append(f"{kind}: {', '.join(str(run.path) for run in shown)}{more}")
    return lines


def find_baseline(arms: Sequence[Arm], wanted: str | None) -> tuple[Arm | None, str]:
    """The baseline, and if there is none the reason.

    Args:
        arms: All arms.
        wanted: The name of an arm or a method; None: scratch, if there is exactly one such arm.

    Raises:
        UserError: the wanted arm does not exist, or the name fits several arms.
    """
    if wanted in (None, "scratch"):
        found = [arm for arm in arms if arm.scratch]
    else:
        found = [arm for arm in arms if arm.name == wanted] or [arm for arm in arms if arm.method == wanted]
    if len(found) == 1:
        return found[0], ""
    names = ", ".join(repr(arm.name) for arm in found)
    if wanted is None:
        reason = f"{len(found)} arms are scratch ({names}); choose one with --baseline" if found else "no scratch runs"
        return None, reason
    if found:
        raise UserError(f"--baseline {wanted} fits {len(found)} arms: {names}. Give one of these names.")
    raise unknown("baseline", wanted, {arm.name for arm in arms} | {arm.method for arm in arms})
