"""Losses that pull one distribution towards another."""

from __future__ import annotations

from torch import Tensor


def kl_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """D_KL[softmax(p) || softmax(q)] in nats, per sample: (B, A), (B, A) -> (B,)."""
    log_p, log_q = p_logits.log_softmax(1), q_logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
