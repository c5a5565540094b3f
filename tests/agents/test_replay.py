import pytest
import torch
from torch import Tensor

from agents.replay import Memory


def samples(*numbers: int) -> tuple[Tensor, Tensor]:
    """Samples that carry their number in every field."""
    column = torch.tensor(numbers, dtype=torch.float32)
    return column[:, None].repeat(1, 3), column


def drawn(memory: Memory, count: int = 400) -> set[int]:
    wide, narrow = memory.draw(count)
    assert len(wide) == len(narrow) == count
    assert bool((wide == narrow[:, None]).all()), "fields of different samples"
    return {int(value) for value in narrow}


def test_samples_of_all_remembered_batches_are_drawn() -> None:
    memory = Memory(100)
    memory.add(*samples(0, 1, 2))
    memory.add(*samples(3, 4))
    assert set().union(*(drawn(memory) for _ in range(5))) == {0, 1, 2, 3, 4}


def test_the_oldest_samples_beyond_the_capacity_go() -> None:
    memory = Memory(5)
    for start in range(0, 30, 3):
        memory.add(*samples(start, start + 1, start + 2))
    assert set().union(*(drawn(memory) for _ in range(5))) == {24, 25, 26, 27, 28, 29}


@pytest.mark.parametrize("capacity", [0, 1])
def test_the_newest_batch_is_always_kept(capacity: int) -> None:
    memory = Memory(capacity)
    memory.add(*samples(0, 1))
    memory.add(*samples(2, 3))
    assert drawn(memory) == {2, 3}


@pytest.mark.parametrize("count", [1, 3, 8, 10, 17])
def test_as_many_as_asked_for_are_drawn(count: int) -> None:
    memory = Memory(100)
    memory.add(*samples(*range(100)))
    drawn(memory, count)


def test_samples_differ_from_draw_to_draw() -> None:
    memory = Memory(100)
    memory.add(*samples(*range(100)))
    assert len({tuple(memory.draw(8)[1].tolist()) for _ in range(5)}) == 5
