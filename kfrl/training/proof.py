"""A check that every term that a method adds to its loss changes something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

PROOF_UPDATES = 100
"""Updates within which each term of a method has to show a gradient."""


class Proof:
    """Looks at the terms of the first updates, each until it has had a gradient once."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        """Start with no updates.

        Args:
            known: Terms that need no proof.
        """
        self._proven = set(known)
        self._without: Counter[str] = Counter()

    def complaint(self, terms: Mapping[str, Tensor], has_gradient: Callable[[Tensor], bool]) -> str | None:
        """A sentence about a term that has had no gradient in its first `PROOF_UPDATES` updates, if there is one.

        Args:
            terms: Of one update: scalars, by name, before the backward pass.
            has_gradient: Whether a term that requires a gradient has one, by a backward pass that keeps the graph.
        """
        for name in [name for name in terms if name not in self._proven]:
            if terms[name].requires_grad and has_gradient(terms[name]):
                self._proven.add(name)
                continue
            self._without[name] += 1
            if self._without[name] >= PROOF_UPDATES:
                return (
                    f"The term losses/{name} had no gradient in its first {PROOF_UPDATES} updates: what was asked for "
                    "does nothing. Give it a weight and something to act on, or a weight of 0, which leaves it out."
                )
        return None
