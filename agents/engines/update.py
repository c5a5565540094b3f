"""Updates from named loss terms: backward pass, optimiser and counters; non-finite updates are dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from agents.batch import Batch
from agents.engines.shared import SharedModel
from agents.methods.base import AnyMethod
from envs.atari import Episode
from kfrl.training.proof import Proof

MAX_CONSECUTIVE_DROPS = 50
ALGORITHM_TERMS = {"policy", "value", "entropy"}
"""Names of the actor-critic terms."""


@dataclass
class Report:
    """A regular report of a learner."""

    game: str = ""
    """The ROM of its game."""
    episodes: list[Episode] = field(default_factory=list)
    """The games that ended."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the logged values over the updates."""
    updates: int = 0
    error: str | None = None
    """The error that ended the learner: its traceback, or a sentence if `hopeless`."""
    hopeless: bool = False
    """Whether the error is a `HopelessError`."""

    def add(self, values: Mapping[str, float]) -> None:
        """Add one update."""
        self.updates += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class HopelessError(RuntimeError):
    """Training fails with these settings, and a resumed run would too; the message is for the user."""


class NonFiniteError(HopelessError):
    """The gradients of many updates in a row were not finite."""


class SilentTermError(HopelessError):
    """A term of a method has no gradient, so it has no effect."""


class Optimiser(Protocol):
    """Changes the parameters of a `SharedModel`."""

    def push(self, grads: Tensor, lr: float) -> float | None:
        """Apply flat gradients; returns the norm before clipping, or None if the update was dropped."""


class Updater:
    """Makes updates of the parameters from the terms of an objective."""

    def __init__(
        self, method: AnyMethod, net: nn.Module, shared: SharedModel, grads: Tensor, optimiser: Optimiser, rank: int
    ) -> None:
        """Store the objects of an update.

        Args:
            method: The method, whose `after_update` is called.
            net: The net, bound to the parameters of `shared`.
            shared: The shared model, with the counters.
            grads: (N,) storage of the gradients.
            optimiser: The optimiser.
            rank: Index of this learner's counters.
        """
        self._method, self._net, self._shared, self._grads = method, net, shared, grads
        self._optimiser, self._rank = optimiser, rank
        self._drops = 0
        self._proof = Proof(ALGORITHM_TERMS)

    def update(self, batch: Batch, terms: Mapping[str, Tensor], lr: float, progress: float, report: Report) -> None:
        """Make one update and report it.

        Args:
            batch: The batch whose output gave the terms.
            terms: Scalars, whose sum is minimised.
            lr: Learning rate.
            progress: Share of the phase that is done.
            report: Report to which the logged values are added.

        Raises:
            NonFiniteError: too many updates in a row were dropped.
            SilentTermError: a term of the method has had no gradient since the start.
        """
        if complaint := self._proof.complaint(terms, self._has_gradient):
            raise SilentTermError(complaint)
        self._grads.zero_()
        measured = self._method.measure(batch, terms)
        losses = torch.stack(list(terms.values()))
        losses.sum().backward()
        norm = self._optimiser.push(self._grads, lr)
        self._shared.updates[1 + self._rank] += 1
        values = dict(zip(terms, losses.tolist(), strict=True))
        if norm is None:
            self._shared.dropped[1 + self._rank] += 1
            self._drops += 1
            self._refuse_endless_drops(values)
            return
        self._drops = 0
        self._method.after_update(self._net, progress)
        losses_by_name = {f"losses/{name}": value for name, value in values.items()}
        report.add(losses_by_name | measured | {"charts/grad_norm": norm})

    def _has_gradient(self, term: Tensor) -> bool:
        self._grads.zero_()
        term.backward(retain_graph=True)
        return bool(self._grads.any())

    def _refuse_endless_drops(self, values: Mapping[str, float]) -> None:
        if self._drops < MAX_CONSECUTIVE_DROPS:
            return
        losses = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise NonFiniteError(
            f"{self._drops} updates in a row had a non-finite gradient, or none under acktr (last losses: {losses}). "
            "The parameters have probably diverged. Start a new run with a smaller step: --config RUN/config.yaml "
            "--lr ... --run-dir NEW"
        )
