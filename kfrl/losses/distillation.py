"""Losses that pull one distribution towards another. A logit of -inf stands for an action that cannot be taken."""

from __future__ import annotations

from torch import Tensor


def kl_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """D_KL[softmax(p) || softmax(q)] in nats, per sample: (B, A), (B, A) -> (B,)."""
    log_p, log_q = p_logits.log_softmax(1), q_logits.log_softmax(1)
    return _expectation(log_p, log_p - log_q)


def cross_entropy(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """-sum_a p(a) log q(a) in nats, per sample: (B, A), (B, A) -> (B,); actor-mimic's policy regression, eq. 3."""
    return _expectation(p_logits.log_softmax(1), -q_logits.log_softmax(1))


def negative_log_likelihood(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """-log q(the teacher's best action), per sample: (B, A), (B, A) -> (B,); policy distillation, L_NLL."""
    best = teacher_logits.argmax(1, keepdim=True)
    return -student_logits.log_softmax(1).gather(1, best).squeeze(1)


def squared_error(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """||q_T - q_S||^2 over the actions of both, per sample: (B, A), (B, A) -> (B,); policy distillation, L_MSE."""
    both = ~(teacher_logits.isneginf() | student_logits.isneginf())
    # Filled in before the difference: the gradient of inf - inf is not a number even where it does not count.
    difference = teacher_logits.masked_fill(~both, 0.0) - student_logits.masked_fill(~both, 0.0)
    return difference.square().sum(1)


def _expectation(log_p: Tensor, values: Tensor) -> Tensor:
    """Sum p v, (B, A), (B, A) -> (B,); what never happens counts nothing, were it infinite."""
    return (log_p.exp() * values.masked_fill(log_p.isneginf(), 0.0)).sum(1)
