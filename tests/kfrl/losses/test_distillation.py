import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kfrl.losses.distillation import cross_entropy, kl_divergence, negative_log_likelihood, squared_error

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
    loss = cross_entropy(torch.tensor([[math.log(4.0), 0.0]]), student)
    assert loss.tolist() == pytest.approx([-0.8 * math.log(0.25) - 0.2 * math.log(0.75)], rel=1e-5)
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([0.25 - 0.8, 0.75 - 0.2], rel=1e-5)


def test_log_likelihood_of_the_best_action_by_hand() -> None:
    student = logits([0.0, math.log(3.0)], [math.log(9.0), 0.0])
    loss = negative_log_likelihood(torch.tensor([[5.0, 4.9], [-1.0, 7.0]]), student)
    assert loss.tolist() == pytest.approx([math.log(4.0), math.log(10.0)], rel=1e-5)


def test_squared_error_by_hand_is_summed_over_actions() -> None:
    student = logits([1.0, 2.0, 4.0])
    loss = squared_error(torch.tensor([[0.0, 5.0, 2.0]]), student)
    assert loss.tolist() == [1.0 + 9.0 + 4.0]
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[2.0, -6.0, 4.0]]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", [kl_divergence, cross_entropy, negative_log_likelihood, squared_error])
def test_an_action_that_the_teacher_has_not_counts_as_never_taken(loss: Loss, masked: bool) -> None:
    """With the student's logit masked as well, it is as if the action were not there."""
    teacher = torch.tensor([[1.0, 2.0, -math.inf, 0.5]])
    student = logits([0.3, -0.2, -math.inf if masked else 0.9, 0.1])
    result = loss(teacher, student)
    result.sum().backward()
    assert student.grad is not None
    assert bool(result.isfinite().all())
    assert bool(student.grad.isfinite().all())
    if masked:
        shorter = loss(teacher[:, [0, 1, 3]], student.detach()[:, [0, 1, 3]])
        torch.testing.assert_close(result, shorter)
        assert student.grad[0, 2] == 0.0
    elif loss is not squared_error:
        assert student.grad[0, 2] == pytest.approx(float(student.detach().softmax(1)[0, 2]), rel=1e-5)


def test_a_student_that_is_no_number_is_not_hidden() -> None:
    assert bool(squared_error(torch.zeros(1, 2), torch.tensor([[0.0, math.nan]])).isnan().all())
