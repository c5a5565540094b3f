import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kfrl.losses.distillation import (
    GATES,
    attention,
    attention_loss,
    attention_similarity,
    cross_entropy,
    directed_kl,
    fsp_loss,
    fsp_matrix,
    hint_loss,
    kl_divergence,
    mimic_loss,
    mutual_loss,
    negative_log_likelihood,
    similarity,
    soft_target_loss,
    squared_error,
)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def test_kl_by_hand() -> None:
    p, q = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    assert kl_divergence(p, q).tolist() == pytest.approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5)], rel=1e-5)
    assert kl_divergence(q, p).tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3)], rel=1e-5)


def test_kl_is_per_sample_and_does_not_depend_on_the_scale_of_logits() -> None:
    p, q = torch.randn(6, 5), torch.randn(6, 5)
    a, b = (np.exp(logits.numpy()) for logits in (p, q))
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    np.testing.assert_allclose(kl_divergence(p, q), (a * np.log(a / b)).sum(1), rtol=1e-4)
    torch.testing.assert_close(kl_divergence(p + 50.0, q - 3.0), kl_divergence(p, q), rtol=1e-3, atol=1e-5)


def test_kl_of_a_distribution_with_itself_is_zero() -> None:
    logits = torch.randn(3, 4)
    assert kl_divergence(logits, logits.clone()).tolist() == [0.0, 0.0, 0.0]


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, requires_grad=True)


def test_cross_entropy_by_hand_and_its_direction_is_the_difference_of_the_policies() -> None:
    student = logits([0.0, math.log(3.0)])
    loss = cross_entropy(student, torch.tensor([[math.log(4.0), 0.0]]))
    assert loss.tolist() == pytest.approx([-0.8 * math.log(0.25) - 0.2 * math.log(0.75)], rel=1e-5)
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([0.25 - 0.8, 0.75 - 0.2], rel=1e-5)


def test_log_likelihood_of_the_best_action_by_hand() -> None:
    student = logits([0.0, math.log(3.0)], [math.log(9.0), 0.0])
    loss = negative_log_likelihood(student, torch.tensor([[5.0, 4.9], [-1.0, 7.0]]))
    assert loss.tolist() == pytest.approx([math.log(4.0), math.log(10.0)], rel=1e-5)


def test_squared_error_by_hand_is_summed_over_actions() -> None:
    student = logits([1.0, 2.0, 4.0])
    loss = squared_error(student, torch.tensor([[0.0, 5.0, 2.0]]))
    assert loss.tolist() == [1.0 + 9.0 + 4.0]
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[2.0, -6.0, 4.0]]


def from_teacher(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return kl_divergence(teacher, student)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", [from_teacher, cross_entropy, negative_log_likelihood, squared_error])
def test_an_action_that_the_teacher_has_not_counts_as_never_taken(loss: Loss, masked: bool) -> None:
    """With the student's logit masked as well, it is as if the action were not there."""
    teacher = torch.tensor([[1.0, 2.0, -math.inf, 0.5]])
    student = logits([0.3, -0.2, -math.inf if masked else 0.9, 0.1])
    result = loss(student, teacher)
    result.sum().backward()
    assert student.grad is not None
    assert bool(result.isfinite().all())
    assert bool(student.grad.isfinite().all())
    if masked:
        shorter = loss(student.detach()[:, [0, 1, 3]], teacher[:, [0, 1, 3]])
        torch.testing.assert_close(result, shorter)
        assert student.grad[0, 2] == 0.0
    elif loss is not squared_error:
        assert student.grad[0, 2] == pytest.approx(float(student.detach().softmax(1)[0, 2]), rel=1e-5)


def test_a_student_that_is_no_number_is_not_hidden() -> None:
    assert bool(squared_error(torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2)).isnan().all())


def log(*odds: float) -> torch.Tensor:
    return torch.tensor([odds]).log()


def test_kd_by_hand() -> None:
    # Logits log 1, log 9 at T = 2 are the odds 1 : 3, the student's log 1, log 1 stay even.
    soft = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert soft_target_loss(log(1, 1), log(1, 9), 2.0).tolist() == pytest.approx([4 * soft], rel=1e-5)
    # The teacher is the first argument of the divergence.
    swapped = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert soft_target_loss(log(1, 9), log(1, 1), 2.0).tolist() == pytest.approx([4 * swapped], rel=1e-5)


def test_kds_gradient_tends_to_that_of_the_logits_at_a_high_temperature() -> None:
    # Hinton et al. 2015, eq. 4: T^2 times (1 / (N T^2)) (z - v), for logits of mean zero.
    z, v = torch.tensor([[1.0, -3.0, 2.0]], requires_grad=True), torch.tensor([[0.5, 0.5, -1.0]])
    soft_target_loss(z, v, 1000.0).sum().backward()
    torch.testing.assert_close(z.grad, (z - v).detach() / 3, rtol=1e-2, atol=1e-3)


def test_mimic_by_hand() -> None:
    logits, wanted = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[4.0, -2.0], [0.0, 1.0]])
    assert mimic_loss(logits, wanted).tolist() == [0.5 * (9 + 16), 0.5]


def test_hint_by_hand() -> None:
    guided, hint = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    guided[0, 0, 0, 1], hint[0, 0, 1, 1], hint[1] = 3.0, 1.0, 2.0
    assert hint_loss(guided, hint).tolist() == [0.5 * (9 + 1) / 4, 0.5 * 4]


def test_fsp_matrix_by_hand() -> None:
    first = torch.tensor([[[[1.0, 2.0]], [[0.0, -1.0]]]])
    second = torch.tensor([[[[3.0, 4.0]], [[5.0, 6.0]], [[1.0, 0.0]]]])
    assert fsp_matrix(first, second).tolist() == [[[11 / 2, 17 / 2, 1 / 2], [-4 / 2, -6 / 2, 0]]]


def test_fsp_between_maps_of_different_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"equal size, got \(4, 4\) and \(2, 2\)"):
        fsp_matrix(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2))


def test_fsp_loss_by_hand() -> None:
    own = [torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]), torch.tensor([[[1.0]], [[2.0]]])]
    wanted = [torch.tensor([[[0.0, 0.0]], [[0.0, 2.0]]]), torch.tensor([[[4.0]], [[2.0]]])]
    assert fsp_loss(own, wanted).tolist() == [(1 + 4) / 2 + 9, 4 / 2]


def test_mutual_by_hand() -> None:
    # The peer is the first argument of the divergence, and peers are averaged.
    one = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert mutual_loss(log(1, 1), [log(1, 3), log(2, 2)]).tolist() == pytest.approx([one / 2], rel=1e-5)
    assert mutual_loss(log(1, 1), [log(1, 3)]).tolist() == pytest.approx([one], rel=1e-5)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("through", [2.0, 3.0]),
        ("cutoff", [0.0, 0.0]),
        ("linear", [0.5, 0.75]),
        ("negative-linear", [1.5, 2.25]),
        ("correct", [0.0, 3.0]),
    ],
)
def test_gates_by_hand(gate: str, expected: list[float]) -> None:
    loss, correct = torch.tensor([2.0, 3.0]), torch.tensor([False, True])
    assert GATES[gate](loss, 0.25, correct).tolist() == expected


def test_similarity_is_the_cosine_of_the_outputs() -> None:
    p, q = torch.tensor([[0.6, 0.2, 0.2]]), torch.tensor([[0.2, 0.6, 0.2]])
    wanted = (0.12 + 0.12 + 0.04) / (0.36 + 0.04 + 0.04)
    assert similarity(p.log(), q.log()).tolist() == pytest.approx([wanted])
    assert similarity(q.log(), q.log() + 3.0).tolist() == pytest.approx([1.0])
    far = torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([[0.0, 40.0, 0.0]])
    assert similarity(*far).tolist() == pytest.approx([0.0], abs=1e-6)


def test_attention_by_hand() -> None:
    # Two channels on two pixels: 3^2 and (-4)^2, so 9 and 16 over their norm.
    maps = torch.tensor([[[[3.0, 0.0]], [[0.0, -4.0]]]])
    norm = math.hypot(9, 16)
    torch.testing.assert_close(attention(maps), torch.tensor([[9 / norm, 16 / norm]]))
    even = torch.ones(1, 3, 1, 2)
    half = math.sqrt(0.5)
    wanted = ((9 / norm - half) ** 2 + (16 / norm - half) ** 2) / 2
    assert attention_loss(maps, even).tolist() == pytest.approx([wanted])
    assert attention_similarity(maps, even).tolist() == pytest.approx([25 / norm * half])
    # Of another size: an even map stays even.
    assert attention_loss(maps, torch.ones(1, 1, 4, 6)).tolist() == pytest.approx([wanted])


def test_the_directions_of_a_kl_by_hand() -> None:
    teacher, student = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    forward = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    reverse = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    for direction, expected in (("forward", forward), ("reverse", reverse), ("mixed", (forward + reverse) / 2)):
        assert directed_kl(student, teacher, direction).tolist() == pytest.approx([expected], rel=1e-5)


def test_in_reverse_the_student_is_conditioned_on_the_teachers_actions() -> None:
    teacher = torch.tensor([[1.0, 3.0, 0.0]]).log()
    student = torch.tensor([[1.0, 1.0, 6.0]]).log().requires_grad_()
    loss = directed_kl(student, teacher, "reverse")
    assert loss.tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3)], rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    # p (log p/q - KL) for p = (1/2, 1/2), q = (1/4, 3/4).
    assert gradient.tolist()[0] == pytest.approx([0.25 * math.log(3), -0.25 * math.log(3), 0.0], rel=1e-5)


# --- the way of the divergence -----------------------------------------------------------------------------------


def by_hand(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(1)


def test_soft_targets_of_several_teachers_in_each_direction_by_hand() -> None:
    own, first, second = torch.randn(3, 4, 5).unbind()
    target = ((first / 2).softmax(1) + (second / 2).softmax(1)) / 2
    student = (own / 2).softmax(1)
    there, back = 4 * by_hand(target, student), 4 * by_hand(student, target)
    teachers = torch.stack([first, second])
    for direction, wanted in (("forward", there), ("reverse", back), ("mixed", (there + back) / 2)):
        torch.testing.assert_close(soft_target_loss(own, teachers, 2.0, direction), wanted)


def test_mutual_learning_in_reverse_by_hand() -> None:
    own, first, second = torch.randn(3, 4, 5).unbind()
    wanted = (by_hand(own.softmax(1), first.softmax(1)) + by_hand(own.softmax(1), second.softmax(1))) / 2
    torch.testing.assert_close(mutual_loss(own, [first, second], "reverse"), wanted)
