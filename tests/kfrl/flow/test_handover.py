import math

import pytest
import torch
from torch import Tensor

from kfrl.flow.handover import Lessons, Memory, handover_loss


def lessons(*numbers: int) -> Lessons:
    """Samples that carry their number in every field."""
    column = torch.tensor(numbers, dtype=torch.float32)
    return Lessons(column[:, None].repeat(1, 3), column[:, None].repeat(1, 2), column)


def drawn(memory: Memory, count: int = 400) -> set[int]:
    drawn = memory.draw(count)
    assert len(drawn) == len(drawn.obs) == len(drawn.logits) == len(drawn.values) >= count
    for field in (drawn.obs, drawn.logits):
        assert bool((field == drawn.values[:, None]).all()), "fields of different samples"
    return {int(value) for value in drawn.values}


def test_lessons_of_all_remembered_rollouts_are_drawn() -> None:
    memory = Memory(100)
    memory.add(lessons(0, 1, 2))
    memory.add(lessons(3, 4))
    assert set().union(*(drawn(memory) for _ in range(5))) == {0, 1, 2, 3, 4}


def test_the_oldest_lessons_beyond_the_capacity_go() -> None:
    memory = Memory(5)
    for start in range(0, 30, 3):
        memory.add(lessons(start, start + 1, start + 2))
    assert set().union(*(drawn(memory) for _ in range(5))) == {24, 25, 26, 27, 28, 29}


@pytest.mark.parametrize("capacity", [0, 1])
def test_the_newest_rollout_is_always_kept(capacity: int) -> None:
    memory = Memory(capacity)
    memory.add(lessons(0, 1))
    memory.add(lessons(2, 3))
    assert drawn(memory) == {2, 3}


def test_lessons_differ_from_draw_to_draw() -> None:
    memory = Memory(100)
    memory.add(lessons(*range(100)))
    assert len({tuple(memory.draw(8).values.tolist()) for _ in range(5)}) == 5


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
