import math

import pytest
import torch
from torch import Tensor

from kfrl.flow.handover import Lessons, handover_loss


def test_the_loss_by_hand() -> None:
    # KL[(1/4, 3/4) || (1/2, 1/2)] + 1/2 (5 - 2)^2
    linked = Lessons(torch.zeros(1, 3), torch.tensor([[1.0, 3.0]]).log(), torch.tensor([5.0]))
    logits = torch.zeros(1, 2, requires_grad=True)
    values = torch.tensor([2.0], requires_grad=True)
    loss: Tensor = handover_loss(logits, values, linked)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5) + 4.5
    assert loss.tolist() == pytest.approx([expected], rel=1e-5)
    loss.sum().backward()
    assert logits.grad is not None
    assert values.grad is not None
    assert logits.grad.tolist() == [pytest.approx([0.25, -0.25], rel=1e-5)]
    assert values.grad.tolist() == pytest.approx([-3.0])
