"""Groups of parameters with a common learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate, `lr_scale` times the run's."""

    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    weight_decay: bool = True
    """Whether the run's weight decay (runs on images) applies to them."""
    lazy: bool = False
    """On games: left alone by an update whose gradient is 0 throughout; momentum would move them all the same."""
    sgd: float | None = None
    """On games: a rate of plain gradient descent, in the place of the run's optimiser and its rate."""
