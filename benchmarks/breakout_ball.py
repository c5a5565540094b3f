"""How well the ball and the paddle of Breakout can be read from an agent's features: a linear regression of each.

    python benchmarks/breakout_ball.py zoo:seaquest zoo:riverraid runs/flow

The features are those of the fully connected layer, after ReLU, on observations of random play; the positions are those
in the emulator's memory. Printed is R2 on held-out observations, and that of a fresh net beside it.
"""

from __future__ import annotations

from typing import Annotated

import ale_py
import gymnasium
import numpy as np
import torch
import tyro
from annotated_types import Ge
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from tabulate import tabulate
from torch import Tensor, nn

from agents.teachers.store import load_teacher
from envs.atari import identify
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.hooks import features_of
from kfrl.runs.folder import RUNS

BALL_X, BALL_Y, PADDLE_X = 99, 101, 72
"""Addresses in the memory of 128 bytes (Anand et al. 2019, "Unsupervised State Representation Learning in Atari")."""
POSITIONS = ("ball x", "ball y", "paddle x")
RIDGES = np.logspace(-2, 3, 6)


def play(count: int, seed: int) -> tuple[Tensor, NDArray[np.float64]]:
    """Observations (count, 4, 84, 84) of random play with the ball in the game, and its positions (count, 3)."""
    gymnasium.register_envs(ale_py)
    game = gymnasium.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    console = game.unwrapped.ale  # type: ignore[attr-defined]  # Gymnasium does not know ale-py's environment.
    env = FrameStackObservation(AtariPreprocessing(game, noop_max=30), 4)
    generator = np.random.default_rng(seed)
    screens: list[NDArray[np.uint8]] = []
    positions: list[list[int]] = []
    env.reset(seed=seed)
    while len(screens) < count:
        screen, _, terminated, truncated, _ = env.step(int(generator.integers(4)))
        memory = console.getRAM()
        if memory[BALL_Y]:
            screens.append(np.array(screen))
            positions.append([int(memory[address]) for address in (BALL_X, BALL_Y, PADDLE_X)])
        if terminated or truncated:
            env.reset()
    return torch.from_numpy(np.stack(screens)), np.array(positions, dtype=np.float64)


def read_from(net: nn.Module, screens: Tensor, positions: NDArray[np.float64]) -> list[float]:
    """R2 of each position on the last quarter, from a regression on the others."""
    with torch.no_grad():
        features = torch.cat([features_of(net, ("fc",), part)["fc"].relu() for part in screens.split(500)]).numpy()
    # One scale for all: a unit that is nearly always silent must not be blown up.
    features /= features.std()
    known = len(features) * 3 // 4
    scores = []
    for wanted in positions.T:
        model = RidgeCV(RIDGES).fit(features[:known], wanted[:known])
        scores.append(float(model.score(features[known:], wanted[known:])))
    return scores


def main(agents: tyro.conf.Positional[tuple[str, ...]], count: Annotated[int, Ge(1000)] = 6000, seed: int = 1) -> None:
    """Measure agents."""
    screens, positions = play(count, seed)
    torch.manual_seed(seed)
    nets: dict[str, nn.Module] = {"fresh net": AtariNet(4)}
    nets |= {name: load_teacher(name, RUNS, identify)[0].net for name in agents}
    rows = [(name, *read_from(net, screens, positions)) for name, net in nets.items()]
    print(tabulate(rows, ("agent", *POSITIONS), tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
