"""A check that every term that a method adds to its loss has a gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

PROOF_UPDATES = 100
"""Updates within which each term of a method must have a gradient."""


class Proof:
    """Checks the terms of the first updates; a term that has had a gradient once is not checked again."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        """Start with no updates.

        Args:
            known: Terms that need no proof.
        """
        self._proven = set(known)
        self._without: Counter[str] = Counter()

    def complaint(self, terms: Mapping[str, Tensor], has_gradient: Callable[[Tensor], bool]) -> str | None:
        """An error message about a term without a gradient in its first `PROOF_UPDATES` updates, or None.

        Args:
            terms: Name -> scalar term of one update, before its backward pass.
            has_gradient: Tests whether a term has a gradient, by a backward pass that keeps the graph.
        """
        for name in [name for name in terms if name not in self._proven]:
            if terms[name].requires_grad and has_gradient(terms[name]):
                self._proven.add(name)
                continue
            self._without[name] += 1
            if self._without[name] >= PROOF_UPDATES:
                return (
                    f"The term losses/{name} had no gradient in its first {PROOF_UPDATES} updates: it has no effect. "
                    "Check its weight and its inputs, or give it the weight 0, which leaves it out."
                )
        return None
