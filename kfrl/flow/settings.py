"""What the Knowledge Flow methods of both domains can set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Lt

from kfrl.config import Count, NonNegative
from kfrl.nets.links import Link


@dataclass(frozen=True)
class FlowSettings:
    """Knowledge Flow, whatever it trains."""

    dependence_coef: NonNegative = 0.1
    """lambda_1 at the end of the run; it starts at 0 and grows linearly (the paper samples 0.05, 0.1, 0.5)."""
    transform: Literal["conv1x1", "dense", "low-rank"] = "conv1x1"
    """Q. dense is the paper's literal matrix, 164 MB for an Atari net's conv1; conv1x1 is one over the channels, for
    maps, and dense for vectors; low-rank is dense in two factors, where that is smaller."""
    transform_rank: Count = 64
    """Rank of the low-rank Q."""
    mixing: Literal["softmax", "simplex"] = "softmax"
    """p = softmax(w) (paper), or p trained itself and re-normalised after each step (reproduction, whose Q is also
    constant)."""
    student_weight: Annotated[float, Gt(0.0), Lt(1.0)] | None = None
    """p of the student at the start; by default an equal share with each linked teacher layer."""
    links: tuple[Link, ...] = ()
    """Links by name (YAML only); by default every hidden layer meets the one at the same relative depth."""
