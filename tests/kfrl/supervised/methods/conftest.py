from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kfrl.nets.images.registry import make_net
from kfrl.supervised.classifiers import Card, Teacher
from kfrl.supervised.data.batches import Batch, Normalisation
from kfrl.supervised.methods.base import Task

CLASSES = ("cat", "dog", "emu")


class Says(nn.Module):
    """Logits that do not depend on the image."""

    def __init__(self, *logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


@pytest.fixture
def says() -> type[Says]:
    """says([1, 2, 3], [0, 0, 0]): the logits of a batch of two."""
    return Says


@pytest.fixture
def task() -> Callable[..., Task]:
    def build(net: str = "mlp-6", shape: tuple[int, int, int] = (1, 8, 8)) -> Task:
        return Task("pets", CLASSES, shape, Normalisation((0.5,) * shape[0], (0.5,) * shape[0]), net)

    return build


@pytest.fixture
def taught() -> Callable[..., Teacher]:
    """A frozen teacher: a net by name, or a module, of the classes of `task`."""

    def build(
        net: str | nn.Module = "mlp-6", name: str = "pets", shape: tuple[int, int, int] = (1, 8, 8), **card: object
    ) -> Teacher:
        made = make_net(net, shape, len(card.get("classes", CLASSES))) if isinstance(net, str) else net
        known = {"classes": CLASSES, "arch": {}, "mean": (0.5,), "std": (0.5,), "net": str(net), **card}
        return Teacher(name, made.eval().requires_grad_(False), Card(name, input_shape=shape, **known), Path("x"))

    return build


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.randn(2, 1, 8, 8), torch.tensor([0, 2]))
