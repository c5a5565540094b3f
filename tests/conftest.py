"""What all tests share: one thread, one seed, small nets."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kfrl.nets.atari import AtariNet
from kfrl.teachers.formats import Card, Teacher

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def obs() -> Tensor:
    return torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)


@pytest.fixture
def mlp() -> Callable[..., nn.Sequential]:
    """mlp(3, 4, 2): layers "0", a ReLU "1", and "2"."""

    def build(*sizes: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return build


@pytest.fixture
def small_net() -> Callable[[int], AtariNet]:
    """A net of two layers: conv1 of 4 maps, fc of 8 units."""
    return lambda actions: AtariNet(actions, ((4, 8, 8),), 8)


@pytest.fixture
def teacher() -> Callable[..., Teacher]:
    def build(net: AtariNet, actions: tuple[str, ...], game: str = "breakout", name: str | None = None) -> Teacher:
        card = Card(game=game, actions=actions, arch=net.arch)
        return Teacher(name or game, net.eval().requires_grad_(False), card, Path("nowhere.safetensors"))

    return build
