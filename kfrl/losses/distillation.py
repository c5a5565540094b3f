"""Losses that pull one distribution towards another."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """D_KL[softmax(p) || softmax(q)] in nats, per sample: (B, A), (B, A) -> (B,)."""
    log_p, log_q = p_logits.log_softmax(1), q_logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL[p || softmax(z_s / T)] with soft targets p = softmax(z_t / T) (Hinton et al. 2015, section 2.1).

    Args:
        student_logits: z_s, (B, K).
        teacher_logits: z_t, (B, K), or (M, B, K) of M teachers, whose soft targets are averaged; a constant.
        temperature: T. Its square keeps the gradient's size independent of it.

    Returns:
        (B,)
    """
    targets = (teacher_logits.detach() / temperature).softmax(-1)
    if targets.dim() == 3:
        targets = targets.mean(0)
    log_student = (student_logits / temperature).log_softmax(1)
    # xlogy: 0 log 0 is 0.
    return temperature**2 * (torch.xlogy(targets, targets) - targets * log_student).sum(1)
