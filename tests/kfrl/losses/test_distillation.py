import math

import numpy as np
import pytest
import torch

from kfrl.losses.distillation import (
    GATES,
    fsp_loss,
    fsp_matrix,
    hint_loss,
    kl_divergence,
    mimic_loss,
    mutual_loss,
    soft_target_loss,
)


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
    with pytest.raises(ValueError, match=r"one size, got \(4, 4\) and \(2, 2\)"):
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
    [("through", [2.0, 3.0]), ("cutoff", [0.0, 0.0]), ("linear", [0.5, 0.75]), ("correct", [0.0, 3.0])],
)
def test_gates_by_hand(gate: str, expected: list[float]) -> None:
    loss, correct = torch.tensor([2.0, 3.0]), torch.tensor([False, True])
    assert GATES[gate](loss, 0.25, correct).tolist() == expected
