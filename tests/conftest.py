"""What all tests share: one thread, one seed, small nets."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.config import TrainConfig
from agents.teachers.formats import Card, Teacher, save_agent
from envs.atari import Episode, Transition, action_set
from envs.protocols import _PRESETS, Protocol, get_protocol
from kfrl.config import dump_config
from kfrl.nets.atari.net import AtariNet

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with slow tests first: a process that ends with one leaves the others without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _few_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observations are of four games: to start one takes as long as hundreds of steps."""
    monkeypatch.setattr("agents.observations.GAMES", 4)


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


@pytest.fixture(scope="module")
def short_games() -> Iterator[None]:
    """Under the protocol `paper` a game ends after 100 agent steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_PRESETS, "paper", {"max_frames": 400})
        yield


class NoiseEnvs:
    """Stands in for `AtariEnvs`: screens of noise, games of 8 steps and 8 points, and no emulator to start."""

    LENGTH = 8

    def __init__(self, protocol: Protocol, num_envs: int, num_threads: int = 1) -> None:
        self.num_envs = num_envs
        self._steps = 0
        self._noise = np.random.default_rng(0)

    def _obs(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return self._noise.integers(0, 256, (self.num_envs, 4, 84, 84), dtype=np.uint8)

    def reset(self, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return self._obs()

    def step(self, actions: np.ndarray[Any, Any]) -> Transition:
        self._steps += 1
        over = self._steps % self.LENGTH == 0
        games = [Episode(k, 8.0, self.LENGTH, False) for k in range(self.num_envs)] if over else []
        flags = np.full(self.num_envs, over)
        rewards = np.ones(self.num_envs, dtype=np.float32)
        return Transition(self._obs(), rewards, flags, np.zeros_like(flags), None, tuple(games))


@pytest.fixture
def noise_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synchronous engines play noise."""
    monkeypatch.setattr("agents.engines.synchronous.AtariEnvs", NoiseEnvs)


@pytest.fixture
def worker_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a3c can run in the test's own process, and plays noise."""
    monkeypatch.setattr("agents.engines.worker.AtariEnvs", NoiseEnvs)
    monkeypatch.setattr("agents.engines.worker.launcher_alive", lambda: True)


Curve = Mapping[int, tuple[float, float]]
"""Step to the raw return in training and that of the student alone."""


@pytest.fixture
def finished_run() -> Callable[..., Path]:
    """Writes the folder of a run that nobody trained: the files that `kfrl train` leaves, with given scores."""

    def build(
        path: Path,
        scores: Sequence[float] = (1.0, 2.0),
        curve: Curve | None = None,
        *,
        greedy: bool = False,
        commit: str = "abc",
        **settings: Any,
    ) -> Path:
        path.mkdir(parents=True)
        config = TrainConfig(**{"game": "Breakout", "steps": 100, "lr": 0.001, "run_dir": path, **settings})
        protocol = get_protocol(config.protocol, config.game)
        actions = action_set(protocol)
        net = AtariNet(len(actions), ((4, 8, 8),), 8)
        names = tuple(name.removeprefix("zoo:") for name in config.teacher_names)
        card = Card(protocol.game, actions, net.arch, teachers=names, seed=config.seed, commit=commit)
        save_agent(path / "student.safetensors", net, card)
        (path / "config.yaml").write_text(dump_config(config))
        result = {
            "steps": config.steps,
            "scores": list(scores),
            "greedy": greedy,
            "protocol": protocol.to_dict(),
            "versions": {"torch": "2"},
        }
        (path / "eval.json").write_text(json.dumps(result))
        lines = [
            f"{step},{training},1,{alone}"
            for step, (training, alone) in (curve or {50: (1.0, 2.0), 100: (3.0, 4.0)}).items()
        ]
        header = "global_step,charts/episodic_return,charts/episodes,eval/mean_return"
        (path / "metrics.csv").write_text("\n".join([header, *lines, ""]))
        return path

    return build
