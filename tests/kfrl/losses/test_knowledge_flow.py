import math

import numpy as np
import pytest
import torch

from kfrl.losses.knowledge_flow import dependence_loss, policy_kl_loss


def test_dependence_is_the_mean_negative_log_of_p_student() -> None:
    # eq. 5: -(log 1/2 + log 1/4 + log 1) / 3 = log 8 / 3
    p = [torch.tensor(0.5), torch.tensor(0.25), torch.tensor(1.0)]
    assert dependence_loss(p).item() == pytest.approx(math.log(8) / 3, rel=1e-6)


def test_an_independent_student_pays_nothing() -> None:
    assert dependence_loss([torch.ones(())] * 3).item() == 0.0


def test_dependence_pushes_every_layer_towards_independence() -> None:
    p = [torch.tensor(value, requires_grad=True) for value in (0.5, 0.1)]
    dependence_loss(p).backward()
    assert [float(w.grad) for w in p if w.grad is not None] == pytest.approx([-0.5 / 0.5, -0.5 / 0.1])


def test_policy_kl_has_the_current_policy_on_the_left() -> None:
    # eq. 6: D_KL[pi_theta || pi_theta_old], (1/4, 3/4) against (1/2, 1/2)
    current, old = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert policy_kl_loss(current, old).tolist() == pytest.approx([expected], rel=1e-5)


def test_policy_kl_of_equal_policies_is_zero_and_so_is_its_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = policy_kl_loss(logits, logits)
    assert loss.tolist() == [0.0, 0.0, 0.0]
    loss.sum().backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, np.zeros((3, 4)), atol=1e-7)


def test_policy_kl_moves_the_current_policy_alone() -> None:
    current, old = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    policy_kl_loss(current, old).sum().backward()
    assert old.grad is None
    p, q = (torch.softmax(logits.detach(), 1).numpy() for logits in (current, old))
    kl = (p * np.log(p / q)).sum(1, keepdims=True)
    assert current.grad is not None
    np.testing.assert_allclose(current.grad, p * (np.log(p / q) - kl), rtol=1e-3, atol=1e-6)
