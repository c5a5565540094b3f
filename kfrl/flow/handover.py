"""What the links know, kept: the linked student distilled into the student alone."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kfrl.losses.distillation import kl_divergence


class Lessons(NamedTuple):
    """Observations and what the linked student made of them; constants."""

    obs: Tensor
    """(B, ...)"""
    logits: Tensor
    """(B, A)"""
    values: Tensor
    """(B,)"""


def handover_loss(logits: Tensor, values: Tensor, lessons: Lessons) -> Tensor:
    """KL[pi_linked || pi_alone] + 1/2 (V_linked - V_alone)^2, per sample.

    Args:
        logits: (B, A) of the student alone on `lessons.obs`.
        values: (B,) likewise.
        lessons: What the linked student said.

    Returns:
        (B,)
    """
    return kl_divergence(lessons.logits, logits) + 0.5 * (lessons.values - values).square()
