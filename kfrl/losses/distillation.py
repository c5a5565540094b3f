"""Distillation losses on outputs, features and relations of features.

The student's argument comes first, except in `kl_divergence`, which has the order of its formula. The caller detaches
the side that is a constant. A logit of -inf means that the action is not available.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kfrl.config import Direction


def kl_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """D_KL[softmax(p) || softmax(q)] in nats, per sample: (B, A), (B, A) -> (B,)."""
    log_p, log_q = p_logits.log_softmax(1), q_logits.log_softmax(1)
    return _expectation(log_p, log_p - log_q)


def directed_kl(logits: Tensor, teacher_logits: Tensor, direction: Direction) -> Tensor:
    """KL between student and teacher in nats, per sample: (B, A), (B, A) -> (B,).

    Args:
        logits: Logits of the student S.
        teacher_logits: Logits of the teacher T.
        direction: `forward`: KL[T || S], so that S covers all actions of T. `reverse`: KL[S || T], so that S prefers
            the most probable ones. `mixed`: the mean of both. In reverse, S is conditioned on T's available actions.
    """
    forward = kl_divergence(teacher_logits, logits)
    if direction == "forward":
        return forward
    reverse = kl_divergence(logits.masked_fill(teacher_logits.isneginf(), -torch.inf), teacher_logits)
    return reverse if direction == "reverse" else (forward + reverse) / 2


def cross_entropy(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """-sum_a pi_T(a) log pi_S(a) in nats, per sample: (B, A), (B, A) -> (B,); actor-mimic, eq. 3."""
    return _expectation(teacher_logits.log_softmax(1), -logits.log_softmax(1))


def negative_log_likelihood(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """-log pi_S(the teacher's best action), per sample: (B, A), (B, A) -> (B,); policy distillation, L_NLL."""
    best = teacher_logits.argmax(1, keepdim=True)
    return -logits.log_softmax(1).gather(1, best).squeeze(1)


def squared_error(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """||q_T - q_S||^2 over the actions of both, per sample: (B, A), (B, A) -> (B,); policy distillation, L_MSE."""
    both = ~(teacher_logits.isneginf() | logits.isneginf())
    # Fill before the difference: the gradient of inf - inf is NaN even if the result is masked.
    difference = teacher_logits.masked_fill(~both, 0.0) - logits.masked_fill(~both, 0.0)
    return difference.square().sum(1)


def _expectation(log_p: Tensor, values: Tensor) -> Tensor:
    """Sum p v, (B, A), (B, A) -> (B,), with 0 times infinity = 0."""
    return (log_p.exp() * values.masked_fill(log_p.isneginf(), 0.0)).sum(1)


def soft_target_loss(
    logits: Tensor, teacher_logits: Tensor, temperature: float, direction: Direction = "forward"
) -> Tensor:
    """T^2 KL[p || softmax(z_s / T)] with soft targets p = softmax(z_t / T) (Hinton et al. 2015, section 2.1).

    Args:
        logits: z_s, (B, K).
        teacher_logits: z_t, (B, K), or (M, B, K) of M teachers, whose soft targets are averaged; a constant.
        temperature: T. The factor T^2 makes the gradient's size independent of T.
        direction: See `directed_kl`.

    Returns:
        (B,)
    """
    targets = (teacher_logits.detach() / temperature).softmax(-1)
    if targets.dim() == 3:
        targets = targets.mean(0)
    if direction != "forward":
        return temperature**2 * directed_kl(logits / temperature, targets.log(), direction)
    log_student = (logits / temperature).log_softmax(1)
    # xlogy, so that 0 log 0 is 0.
    return temperature**2 * (torch.xlogy(targets, targets) - targets * log_student).sum(1)


def mimic_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1/2 ||g(x) - z||^2 over the logits (Ba and Caruana 2014, eq. 1), per sample: (B, A), (B, A) -> (B,)."""
    return 0.5 * (logits - teacher_logits).square().sum(1)


def hint_loss(guided: Tensor, hint: Tensor) -> Tensor:
    """1/2 ||u_h(x) - r(v_g(x))||^2 (FitNets, eq. 3), per sample: (B, ...), (B, ...) -> (B,).

    It is the mean over a layer's elements, not the sum, so that the learning rate does not depend on the map's size.
    """
    return 0.5 * (guided - hint).square().flatten(1).mean(1)


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """G_ij = sum_st F1_sti F2_stj / (h w), the flow between two maps of equal size (Yim et al. 2017, eq. 1).

    Args:
        first: (B, C1, h, w)
        second: (B, C2, h, w)

    Returns:
        (B, C1, C2)

    Raises:
        ValueError: the maps differ in size.
    """
    if first.shape[2:] != second.shape[2:]:
        raise ValueError(f"Expected maps of equal size, got {tuple(first.shape[2:])} and {tuple(second.shape[2:])}.")
    flow: Tensor = torch.einsum("bihw,bjhw->bij", first, second) / (first.shape[2] * first.shape[3])
    return flow


def fsp_loss(matrices: Sequence[Tensor], teacher_matrices: Sequence[Tensor]) -> Tensor:
    """Sum_i of the mean of (G_i^T - G_i^S)^2 (Yim et al. 2017, eq. 2, with lambda_i = 1 / (C1 C2)), per sample.

    Args:
        matrices: (B, C1, C2) each, the student's.
        teacher_matrices: The teacher's, with the same shapes.

    Returns:
        (B,)
    """
    distances = [
        (own - wanted).square().flatten(1).mean(1) for own, wanted in zip(matrices, teacher_matrices, strict=True)
    ]
    return torch.stack(distances).sum(0)


def mutual_loss(logits: Tensor, peers: Sequence[Tensor], direction: Direction = "forward") -> Tensor:
    """1/(K - 1) sum_j D_KL[p_j || p_i] from K - 1 peers (Zhang et al. 2018, eq. 7), per sample.

    Args:
        logits: (B, A), logits of net i.
        peers: (B, A), logits of each other net j.
        direction: See `directed_kl`; the peer is T.

    Returns:
        (B,)
    """
    return torch.stack([directed_kl(logits, peer, direction) for peer in peers]).mean(0)


def similarity(logits: Tensor, other_logits: Tensor) -> Tensor:
    """The cosine between softmax(z) and softmax(z'), per sample: (B, K), (B, K) -> (B,).

    Minimising it makes two nets differ (Okamoto et al., ECCV 2022); unlike -KL it is bounded.
    """
    return F.cosine_similarity(logits.softmax(1), other_logits.softmax(1), dim=1)


def attention(maps: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Sum_c h_c^2 over the channels, as a unit vector over the positions (Zagoruyko and Komodakis 2017, eq. 1).

    Args:
        maps: h, (B, C, h, w), behind the activation.
        size: Height and width to which the map is resized, bilinearly.

    Returns:
        (B, h w)
    """
    energy = maps.square().sum(1, keepdim=True)
    if size is not None and tuple(energy.shape[2:]) != tuple(size):
        energy = F.interpolate(energy, list(size), mode="bilinear", align_corners=False)
    return F.normalize(energy.flatten(1), dim=1)


def attention_loss(maps: Tensor, source_maps: Tensor) -> Tensor:
    """||a - a'||^2 / (h w) between attention maps, per sample; the source's map is resized to the other's size.

    Args:
        maps: (B, C, h, w)
        source_maps: (B, C', h', w')

    Returns:
        (B,)
    """
    return (attention(maps) - attention(source_maps, maps.shape[2:])).square().mean(1)


def attention_similarity(maps: Tensor, source_maps: Tensor) -> Tensor:
    """<a, a'> between attention maps, per sample; see `attention_loss`."""
    return (attention(maps) * attention(source_maps, maps.shape[2:])).sum(1)


def _through(loss: Tensor, progress: float, source_correct: Tensor) -> Tensor:
    return loss


def _cutoff(loss: Tensor, progress: float, source_correct: Tensor) -> Tensor:
    return torch.zeros_like(loss)


def _linear(loss: Tensor, progress: float, source_correct: Tensor) -> Tensor:
    return progress * loss


def _negative_linear(loss: Tensor, progress: float, source_correct: Tensor) -> Tensor:
    return (1.0 - progress) * loss


def _correct(loss: Tensor, progress: float, source_correct: Tensor) -> Tensor:
    return loss * source_correct


GATES: dict[str, Callable[[Tensor, float, Tensor], Tensor]] = {
    "through": _through,
    "cutoff": _cutoff,
    "linear": _linear,
    "negative-linear": _negative_linear,
    "correct": _correct,
}
"""The gates of the knowledge transfer graph (Minami et al. 2019, section 3.3).

Each takes a loss a per sample (B,), the share k / k_end of the training that is done, and (B,) bool whether the edge's
source classifies the sample correctly. It returns a loss per sample: a; 0; (k / k_end) a; (1 - k / k_end) a, which the
authors added later; and a for correct samples, else 0.
"""
