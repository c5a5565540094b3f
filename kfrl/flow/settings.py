"""Settings of Knowledge Flow for games and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Lt

from kfrl.config import Count, NonNegative
from kfrl.flow.schedule import dependence_weight
from kfrl.nets.links import Link


@dataclass(frozen=True)
class FlowSettings:
    """Settings of Knowledge Flow that both domains share."""

    dependence_coef: NonNegative = 0.1
    """lambda_1 at the end of the run (the paper samples 0.05, 0.1, 0.5)."""
    dependence_schedule: Literal["linear", "constant"] = "linear"
    """lambda_1 over the run: rises linearly from 0 (paper), or is constant at --dependence-coef (reproduction)."""
    transform: Literal["conv1x1", "dense", "low-rank"] = "conv1x1"
    """Kind of Q. dense: the paper's full matrix, 164 MB for an Atari net's conv1. conv1x1: a matrix over channels for
    maps, dense for vectors. low-rank: dense as a product of two matrices, if that is smaller."""
    transform_rank: Count = 64
    """Rank of the low-rank Q."""
    mixing: Literal["softmax", "simplex"] = "softmax"
    """softmax: p = softmax(w) (paper). simplex: p itself is trained and normalised after each step (reproduction, whose
    Q is also constant)."""
    student_weight: Annotated[float, Gt(0.0), Lt(1.0)] | None = None
    """p of the student at the start; by default equal to that of each linked teacher layer."""
    links: tuple[Link, ...] = ()
    """Links by name (YAML only); by default every hidden layer is linked to the one at the same relative depth."""

    def lambda_1(self, progress: float) -> float:
        """The weight of l_dep at `progress`, the share of the run that is over."""
        return dependence_weight(1.0 if self.dependence_schedule == "constant" else progress, self.dependence_coef)
