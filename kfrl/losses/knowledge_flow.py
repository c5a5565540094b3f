"""The two losses that Knowledge Flow adds to the task's loss (Knowledge Flow, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kfrl.losses.distillation import kl_divergence


def dependence_loss(student_weights: Sequence[Tensor]) -> Tensor:
    """l_dep = -(1/L_0) sum_j log p^j(l_0^j) (eq. 5).

    Args:
        student_weights: p of the student, a scalar in (0, 1] for each linked layer j.

    Returns:
        Scalar, 0 when the student is independent.
    """
    return -torch.stack(list(student_weights)).log().mean()


def policy_kl_loss(logits: Tensor, previous_logits: Tensor) -> Tensor:
    """l_KL = D_KL[pi_theta || pi_theta_old] (eq. 6), per sample: (B, A), (B, A) -> (B,).

    `previous_logits` come from the PREVIOUS iteration's parameters on the CURRENT observations. With the current
    parameters on both sides, the value and its gradient would always be zero.
    """
    return kl_divergence(logits, previous_logits.detach())
