"""p_w: the weights of each student layer and of the teacher layers linked to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Variant = Literal["softmax", "simplex"]
FLOOR = 1e-6
"""Lower bound of a weight in the simplex variant."""


class Mixing(nn.Module):
    """The normalised weights p^j of every linked layer j; entry 0 is the student's.

    Two variants:
        softmax: p = softmax(w), w trainable (Knowledge Flow, section 3.2).
        simplex: p itself is trained and projected onto the simplex after each step; it starts at `student_weight` for
            the student and 1 for each teacher layer, before normalisation (the reproduction's section 2.1: 0.1 / 1).
    """

    def __init__(self, candidates: Mapping[str, int], variant: Variant, student_weight: float | None = None) -> None:
        """Create the weights.

        Args:
            candidates: Linked student layer -> number of teacher layers that feed it.
            variant: See the class.
            student_weight: p of the student at the start. Default: the same as that of each teacher layer for
                `softmax`, and the reproduction's 0.1 to 1 for `simplex`.
        """
        super().__init__()
        self.variant = variant
        # Not a ParameterDict, which refuses layers named `keys` or `values`.
        self.raw = nn.Module()
        for layer, count in candidates.items():
            initial = _initial(variant, count, student_weight)
            self.raw.register_parameter(tensor_name(layer), nn.Parameter(initial))

    def forward(self, layer: str, absent: Collection[int] = ()) -> Tensor:
        """p^j of `layer`: (1 + number of teacher layers,), with sum 1; 0 at the entries in `absent`."""
        raw: Tensor = getattr(self.raw, tensor_name(layer))
        places = torch.tensor(sorted(absent), dtype=torch.int64, device=raw.device) if absent else None
        if self.variant == "softmax":
            return (raw if places is None else raw.index_fill(0, places, -math.inf)).softmax(0)
        # The reproduction treats a weight that a step made negative as zero.
        positive = raw.clamp_min(FLOOR)
        if places is not None:
            positive = positive.index_fill(0, places, 0.0)
        return positive / positive.sum()

    @torch.no_grad()
    def admit(self, layer: str, places: Collection[int], share: float, absent: Collection[int]) -> None:
        """Set the sum of p^j at `places` to `share`; the other weights keep their ratios.

        Args:
            layer: The student's layer j.
            places: Entries of p^j, at least one.
            share: In (0, 1).
            absent: Entries that p^j leaves out.
        """
        raw: Tensor = getattr(self.raw, tensor_name(layer))
        others = [place for place in range(len(raw)) if place not in places and place not in absent]
        odds = share / (1.0 - share) / len(places)
        chosen = torch.tensor(sorted(places), device=raw.device)
        if self.variant == "softmax":
            raw[chosen] = raw[others].logsumexp(0) + math.log(odds)
        else:
            raw[chosen] = odds * raw[others].clamp_min(FLOOR).sum()

    @torch.no_grad()
    def renormalise(self) -> None:
        """Project p onto the simplex after an optimiser step (simplex variant only).

        Weights below the floor are raised to it, because `forward` clamps smaller ones and they get no gradient.
        """
        if self.variant == "simplex":
            for raw in self.raw.parameters():
                raw.clamp_min_(FLOOR).div_(raw.sum()).clamp_min_(FLOOR)


def tensor_name(layer: str) -> str:
    """The name for a tensor that belongs to `layer`; PyTorch does not allow a dot in it."""
    return layer.replace(".", "/")


def _initial(variant: Variant, teachers: int, student_weight: float | None) -> Tensor:
    if variant == "simplex" and student_weight is None:
        start = torch.tensor([0.1] + [1.0] * teachers)
        return start / start.sum()
    own = 1.0 / (1 + teachers) if student_weight is None else student_weight
    p = torch.tensor([own] + [(1.0 - own) / teachers] * teachers)
    return p.log() if variant == "softmax" else p
