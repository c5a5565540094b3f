"""p_w: how much each student layer trusts itself and each linked teacher layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Variant = Literal["softmax", "simplex"]
FLOOR = 1e-6
"""The least that a weight of the simplex counts as."""


class Mixing(nn.Module):
    """The normalised weights p^j of every linked layer j; entry 0 is the student's own.

    Two variants:
        softmax: p = softmax(w), w trainable (Knowledge Flow, section 3.2).
        simplex: p is trained itself and put back on the simplex after each step, starting from `student_weight` to 1
            before normalisation (the reproduction's section 2.1: 0.1 / 1).
    """

    def __init__(self, candidates: Mapping[str, int], variant: Variant, student_weight: float | None = None) -> None:
        """Create the weights.

        Args:
            candidates: Linked student layer -> number of teacher layers that feed it.
            variant: See the class.
            student_weight: p of the student at the start. Default: an equal share with each teacher layer under
                `softmax`, and the reproduction's 0.1 to 1 under `simplex`.
        """
        super().__init__()
        self.variant = variant
        # A ParameterDict refuses layers called `keys` or `values`.
        self.raw = nn.Module()
        for layer, count in candidates.items():
            initial = _initial(variant, count, student_weight)
            self.raw.register_parameter(tensor_name(layer), nn.Parameter(initial))

    def forward(self, layer: str, absent: Collection[int] = ()) -> Tensor:
        """p^j of `layer`: (1 + number of teacher layers,), summing to 1; 0 at the places of the `absent`."""
        raw: Tensor = getattr(self.raw, tensor_name(layer))
        places = torch.tensor(sorted(absent), dtype=torch.int64, device=raw.device) if absent else None
        if self.variant == "softmax":
            return (raw if places is None else raw.index_fill(0, places, -math.inf)).softmax(0)
        # The reproduction counts a weight that a step pushed below zero as zero.
        positive = raw.clamp_min(FLOOR)
        if places is not None:
            positive = positive.index_fill(0, places, 0.0)
        return positive / positive.sum()

    @torch.no_grad()
    def admit(self, layer: str, places: Collection[int], share: float, absent: Collection[int]) -> None:
        """Give the weights at `places` together the share `share` of p^j, the others keep their proportions.

        Args:
            layer: The student's layer j.
            places: Entries of p^j, one at least.
            share: In (0, 1).
            absent: Entries that count for nothing, before and after.
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
        """Put p back on the simplex after an optimiser step (simplex variant only).

        No weight stays below the floor, where `forward` would clamp it and no gradient could reach it any more.
        """
        if self.variant == "simplex":
            for raw in self.raw.parameters():
                raw.clamp_min_(FLOOR).div_(raw.sum()).clamp_min_(FLOOR)


def tensor_name(layer: str) -> str:
    """The name of a tensor that belongs to `layer`; PyTorch allows no dot in one."""
    return layer.replace(".", "/")


def _initial(variant: Variant, teachers: int, student_weight: float | None) -> Tensor:
    if variant == "simplex" and student_weight is None:
        start = torch.tensor([0.1] + [1.0] * teachers)
        return start / start.sum()
    own = 1.0 / (1 + teachers) if student_weight is None else student_weight
    p = torch.tensor([own] + [(1.0 - own) / teachers] * teachers)
    return p.log() if variant == "softmax" else p
