"""Review of a linked student's teachers: their worth, and the changes of links that follow (`kfrl.flow.pool`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from agents.evaluation.paired import returns
from agents.methods.base import Review
from envs.atari import AtariEnvs
from kfrl.flow import KnowledgeFlow
from kfrl.flow.pool import Change, Measured, TeacherPool


@dataclass(frozen=True)
class Terms:
    """The settings of a review."""

    games: int
    """Games from the same starts, with all links and without those of each teacher."""
    steps: int
    """Most steps of each game."""
    share: float
    """Sum of p over a new teacher's links at each layer."""
    newcomers: bool
    """Whether teachers may be added."""
    seed: int
    """Seed of the games."""


def review(
    flow: KnowledgeFlow,
    pool: TeacherPool,
    start: Callable[[int], AtariEnvs],
    terms: Terms,
    admit: Callable[[str, float, Tensor], tuple[nn.Parameter, ...]],
) -> Iterator[Review | None]:
    """Play games, then change the links. The iterator gives None after each step of the games, then the review.

    The pool has the changes when the iterator ends, so that the caller can reset the statistics of `fresh` before.

    Args:
        flow: The linked student; a copy of its present parameters plays, so other processes may train it meanwhile.
        pool: The pool of its teachers, which records the review.
        start: Starts a number of games.
        terms: The settings of the review.
        admit: (teacher, share, observations) links a teacher; returns the parameters that were re-initialised.
    """
    frozen = {name: parameter.detach().clone() for name, parameter in flow.named_parameters()}
    envs, seen, present = start(terms.games), list[Tensor](), pool.present
    with_all = yield from returns(partial(_logits, flow, frozen, None), envs, terms.steps, terms.seed, seen)
    found = {}
    for teacher in present:
        lacking = yield from returns(partial(_logits, flow, frozen, teacher), envs, terms.steps, terms.seed)
        found[teacher] = Measured(flow.reliance(teacher), with_all, lacking)
    pool.record(found)
    changes = pool.changes(terms.newcomers)
    obs, fresh = torch.cat(seen)[:512], list[nn.Parameter]()
    flow.absent |= {change.teacher for change in changes if not change.comes}
    for change in changes:
        if change.comes:
            fresh += admit(change.teacher, terms.share, obs)
    yield Review(tuple(map(_sentence, changes)), tuple(_rows(pool, found, changes)), tuple(fresh))
    # Last, because the other processes follow the pool and update the links with the optimiser's statistics.
    pool.make(changes)


def _logits(flow: KnowledgeFlow, frozen: Mapping[str, Tensor], lacking: str | None, obs: Tensor) -> Tensor:
    absent = flow.absent
    flow.absent = absent | {lacking} if lacking else absent
    try:
        device = next(iter(frozen.values())).device
        logits: Tensor = functional_call(flow, dict(frozen), (obs.to(device),))[0]
    finally:
        flow.absent = absent
    return logits


def _sentence(change: Change) -> str:
    return f"Teacher {change.teacher} {'is linked' if change.comes else 'is dropped'}: {change.why}."


def _rows(pool: TeacherPool, found: Mapping[str, Measured], changes: list[Change]) -> Iterator[dict[str, Any]]:
    """A row for each teacher of the pool."""
    changed = {change.teacher: change for change in changes}
    for teacher in pool.teachers:
        measured, change = found.get(teacher), changed.get(teacher)
        yield {
            "teacher": teacher,
            "linked": int(teacher in pool.present if change is None else change.comes),
            "share": "" if measured is None else f"{measured.share:.4f}",
            "return_with": "" if measured is None else f"{float(measured.returns.mean()):.4g}",
            "return_without": "" if measured is None else f"{float(measured.without.mean()):.4g}",
            "worth": "" if measured is None else f"{measured.worth:.4f}",
            "useful": "" if measured is None else int(measured.useful),
            "event": "" if change is None else ("linked" if change.comes else "dropped"),
            "why": "" if change is None else change.why,
        }
