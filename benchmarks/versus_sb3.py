"""Steps a second of kfrl, Stable-Baselines3's A2C and PPO and PFRL's A3C, with the same game, net and rollouts.

    python benchmarks/versus_sb3.py --rounds 5

SB3 runs as in its documentation: `make_atari_env` with `SubprocVecEnv`, `VecFrameStack`, the paper's net as features
extractor, and PyTorch's default threads. Everything is measured in turns, A B C A B C ..., each in a new process,
after a warm-up; the table has medians. SB3 is in the dev extra: `make setup`. PFRL is measured if it is installed
(`pip install --no-deps pfrl gym==0.26.2 gym-notices`), set up as in its `train_a3c.py`, on the same wrapped games as
SB3.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

WARM_UP = 3.0
A2C_ENVS, A2C_STEPS = 16, 5
PPO_ENVS, PPO_STEPS, PPO_BATCH, PPO_EPOCHS = 8, 128, 256, 4
SETTINGS = (
    f"A2C: {A2C_ENVS} games, n_steps {A2C_STEPS}. PPO: {PPO_ENVS} games, n_steps {PPO_STEPS}, batch {PPO_BATCH}, "
    f"{PPO_EPOCHS} epochs. All: conv 16 8x8/4, conv 32 4x4/2, fc 256, frame skip 4, 84 x 84 x 4."
)
ARMS = {
    "sb3-a2c": "SB3 A2C, 16 subprocesses",
    "fast": "kfrl a3c, --preset fast",
    "paper": "kfrl a3c, the paper's shape: 16 workers x 1 game",
    "a2c": "kfrl a2c, 16 games",
    "pfrl-a3c": "PFRL A3C, 16 processes",
    "sb3-ppo": "SB3 PPO, 8 subprocesses",
    "ppo": "kfrl ppo, 8 games",
}
RIVAL = {"fast": "sb3-a2c", "paper": "sb3-a2c", "a2c": "sb3-a2c", "ppo": "sb3-ppo"}


@dataclass(frozen=True)
class Options:
    """Compare throughput with Stable-Baselines3."""

    game: str = "Seaquest"
    """The game."""
    rounds: int = 5
    """Measurements of each arm."""
    seconds: float = 10.0
    """Seconds of a measurement, after a warm-up."""
    json: Path | None = None
    """Also write every measurement to this file."""
    only: str = ""
    """Internal: measure only this arm and print its rate."""


def sb3_rate(arm: str, game: str, seconds: float) -> float:
    """Agent steps a second of SB3."""
    import torch
    from gymnasium import Space
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack
    from torch import nn

    from envs.games import find_game

    class PaperNet(BaseFeaturesExtractor):
        def __init__(self, observation_space: Space[Any]) -> None:
            super().__init__(observation_space, 256)
            convs = (nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten())
            self.layers = nn.Sequential(*convs, nn.Linear(2592, 256), nn.ReLU())

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.layers(observations)
            return features

    class Clock(BaseCallback):
        first = start = end = (0.0, 0)

        def _on_step(self) -> bool:
            now = (time.perf_counter(), self.num_timesteps)
            if not self.first[1]:
                self.first = now
            elif not self.start[1] and now[0] - self.first[0] > WARM_UP:
                self.start = now
            self.end = now
            return not self.start[1] or now[0] - self.start[0] < seconds

    a2c = arm == "sb3-a2c"
    # The rules of NoFrameskip-v4, which ale-py no longer registers; SB3's wrapper skips the frames.
    name, rules = f"ale_py:ALE/{find_game(game).title}-v5", {"frameskip": 1, "repeat_action_probability": 0.0}
    num_envs = A2C_ENVS if a2c else PPO_ENVS
    envs = make_atari_env(name, n_envs=num_envs, seed=1, env_kwargs=rules, vec_env_cls=SubprocVecEnv)
    policy = {"features_extractor_class": PaperNet, "net_arch": []}
    shape: dict[str, Any] = (
        {"n_steps": A2C_STEPS} if a2c else {"n_steps": PPO_STEPS, "batch_size": PPO_BATCH, "n_epochs": PPO_EPOCHS}
    )
    kind = A2C if a2c else PPO
    model = kind("CnnPolicy", VecFrameStack(envs, 4), policy_kwargs=policy, device="cpu", **shape)
    clock = Clock()
    model.learn(10**9, callback=clock)
    envs.close()
    return (clock.end[1] - clock.start[1]) / (clock.end[0] - clock.start[0])


class StackedGame:
    """One game in SB3's wrappers, with four stacked screens and the interface of old Gym, which PFRL needs."""

    def __init__(self, game: str) -> None:
        """Start a game."""
        import gymnasium
        from stable_baselines3.common.atari_wrappers import AtariWrapper

        from envs.games import find_game

        raw = gymnasium.make(f"ale_py:ALE/{find_game(game).title}-v5", frameskip=1, repeat_action_probability=0.0)
        self._env = AtariWrapper(raw)
        self._screens: deque[Any] = deque(maxlen=4)

    def reset(self) -> Any:
        """The first observation, (4, 84, 84)."""
        screen, _ = self._env.reset()
        self._screens.extend([screen] * 4)
        return self._stack()

    def step(self, action: int) -> tuple[Any, float, bool, dict[str, Any]]:
        """Observation, reward, done, info."""
        screen, reward, terminated, truncated, info = self._env.step(action)
        self._screens.append(screen)
        return self._stack(), float(reward), terminated or truncated, info

    def _stack(self) -> Any:
        import numpy as np

        return np.concatenate(self._screens, axis=2).transpose(2, 0, 1)


def pfrl_rate(game: str, seconds: float) -> float:
    """Agent steps a second of PFRL's A3C."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import numpy as np
    from pfrl.agents import a3c
    from pfrl.experiments import train_agent_async
    from pfrl.nn import Branched
    from pfrl.optimizers import SharedRMSpropEpsInsideSqrt
    from pfrl.policies import SoftmaxCategoricalHead
    from torch import multiprocessing as mp
    from torch import nn

    body = (nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten())
    heads = Branched(nn.Sequential(nn.Linear(256, 18), SoftmaxCategoricalHead()), nn.Linear(256, 1))
    model = nn.Sequential(*body, nn.Linear(2592, 256), nn.ReLU(), heads)
    optimizer = SharedRMSpropEpsInsideSqrt(model.parameters(), lr=7e-4, eps=1e-1, alpha=0.99)
    agent = a3c.A3C(
        model,
        optimizer,
        t_max=5,
        gamma=0.99,
        beta=1e-2,
        phi=lambda x: np.asarray(x, dtype=np.float32) / 255,
        max_grad_norm=40.0,
    )
    times = mp.Array("d", 3)  # of the first step, and of the first and the last step of the measurement
    counts = mp.Array("l", 3)
    stop = mp.Event()

    def clock(env: object, agent: object, step: int) -> None:
        now = time.perf_counter()
        with times.get_lock():
            if not counts[0]:
                times[0], counts[0] = now, step
            elif not counts[1] and now - times[0] > WARM_UP:
                times[1], counts[1] = now, step
            elif counts[1] and not stop.is_set():
                times[2], counts[2] = now, step
                if now - times[1] > seconds:
                    stop.set()

    with TemporaryDirectory() as folder:
        train_agent_async(
            outdir=folder,
            processes=A2C_ENVS,
            make_env=lambda index, test: StackedGame(game),
            agent=agent,
            steps=10**9,
            max_episode_len=None,
            global_step_hooks=[clock],
            stop_event=stop,
            random_seeds=list(range(A2C_ENVS)),  # PFRL's default has a type that Python no longer accepts
            use_tensorboard=False,
        )
    rate: float = (counts[2] - counts[1]) / (times[2] - times[1])
    return rate


def kfrl_rate(arm: str, game: str, seconds: float) -> float:
    """Agent steps a second of kfrl."""
    from agents.benchmark import Benchmark

    with TemporaryDirectory() as folder:
        benchmark = Benchmark(game, Path(folder))
        shapes: dict[str, dict[str, Any]] = {"a2c": {"envs_per_worker": A2C_ENVS}, "ppo": {"envs_per_worker": PPO_ENVS}}
        return benchmark.training(arm, **shapes.get(arm, {})).measure(seconds).steps_per_sec


def measure(arm: str, options: Options) -> float:
    """Measure an arm in a new process; kfrl with the environment of the command `kfrl`."""
    ours = {} if "-" in arm else {"OMP_WAIT_POLICY": "passive"}
    flags = ["--only", arm, "--game", options.game, "--seconds", str(options.seconds)]
    done = subprocess.run(
        [sys.executable, __file__, *flags], capture_output=True, text=True, check=False, env=os.environ | ours
    )
    if done.returncode:
        sys.exit(f"{arm} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def main(options: Options) -> None:
    """Measure in turns and print the table."""
    if options.only:
        if options.only == "pfrl-a3c":
            print(pfrl_rate(options.game, options.seconds))
            return
        rate = sb3_rate if options.only.startswith("sb3") else kfrl_rate
        print(rate(options.only, options.game, options.seconds))
        return
    if find_spec("pfrl") is None:
        del ARMS["pfrl-a3c"]
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    turns = [arm for _ in range(options.rounds) for arm in ARMS]
    for arm in track(turns, "Measuring", console=Console(stderr=True), transient=True):
        rates[arm].append(measure(arm, options))
    table = Table("", "steps/s", "lowest to highest", "over SB3", caption=SETTINGS)
    for arm, title in ARMS.items():
        found = rates[arm]
        ratio = ""
        if arm in RIVAL:
            pairs = zip(found, rates[RIVAL[arm]], strict=True)
            ratio = f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}"
        table.add_row(title, f"{statistics.median(found):,.0f}", f"{min(found):,.0f} to {max(found):,.0f}", ratio)
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rates, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
