"""One update from named terms: backward, optimiser, counts; dropped and counted when it is not finite."""

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
"""Names of the actor-critic's own terms."""


@dataclass
class Report:
    """What a learner reports from time to time."""

    game: str = ""
    """The ROM that it plays."""
    episodes: list[Episode] = field(default_factory=list)
    """The games that ended."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums over updates of what is logged."""
    updates: int = 0
    error: str | None = None
    """The traceback of what ended this learner."""

    def add(self, values: Mapping[str, float]) -> None:
        """Count one update."""
        self.updates += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class NonFiniteError(RuntimeError):
    """Gradients stayed NaN or infinite; training on would only hide it."""


class SilentTermError(RuntimeError):
    """A term of a method has no gradient: what was asked for does nothing."""


class Optimiser(Protocol):
    """Changes the parameters of a `SharedModel`."""

    def push(self, grads: Tensor, lr: float) -> float | None:
        """Apply flat gradients; the norm before clipping, or None when it was not finite and the update dropped."""


class Updater:
    """Turns the terms of an objective into updates of the parameters."""

    def __init__(
        self, method: AnyMethod, net: nn.Module, shared: SharedModel, grads: Tensor, optimiser: Optimiser, rank: int
    ) -> None:
        """Keep what an update touches.

        Args:
            method: Whose `after_update` follows.
            net: Bound to the parameters of `shared`.
            shared: Holds the counters.
            grads: (N,) where `backward` leaves its gradients.
            optimiser: Takes them.
            rank: Which counter is this learner's.
        """
        self._method, self._net, self._shared, self._grads = method, net, shared, grads
        self._optimiser, self._rank = optimiser, rank
        self._drops = 0
        self._proof = Proof(ALGORITHM_TERMS)

    def update(self, batch: Batch, terms: Mapping[str, Tensor], lr: float, progress: float, report: Report) -> None:
        """Make one update and report it.

        Args:
            batch: Whose output the terms were made from.
            terms: Scalars, whose sum is minimised.
            lr: Learning rate.
            progress: Share of the phase that is done.
            report: Takes what is logged.

        Raises:
            NonFiniteError: too many in a row had to be dropped.
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
            f"{self._drops} updates in a row had a non-finite gradient (last losses: {losses}). The parameters have "
            "probably diverged. Start anew with a smaller step: --config RUN/config.yaml --lr ... --run-dir NEW"
        )
