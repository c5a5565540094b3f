import math

import numpy as np
import pytest
import torch

from kfrl.losses.distillation import kl_divergence


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
