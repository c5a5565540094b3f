"""Test of the teacher pool in a game of eight steps, with an expert, two agents of other games and a random net.

The game: one quadrant of a noisy screen is brighter, its button gives a point, and then the quadrant changes. The two
other agents have learned games on the same screens in which only the quadrant's column counts. For each seed the
student starts with two linked teachers, the random net and one of these agents; the other agent and the expert wait.

    python benchmarks/teacher_pool.py --seeds 10
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import agents
from agents.config import TrainConfig
from agents.engines.settings import PPOConfig
from agents.teachers.formats import Card, save_agent
from envs.atari import Episode, Transition
from envs.protocols import Protocol
from kfrl.nets import arch_of
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.history import read
from kfrl.runs.metrics import read_metrics
from kfrl.seeding import seed_everything

ACTIONS = ("NOOP", "FIRE", "RIGHT", "LEFT")
CELLS, CELL = 12, 7
"""The screen is 12 x 12 cells of 7 pixels."""
LENGTH = 8
ANSWERS = {"breakout": (0, 1, 2, 3), "pong": (0, 1, 0, 1), "seaquest": (3, 2, 3, 2)}
"""Game -> the buttons of the four quadrants; in the two other games the button depends only on the column."""
CONVS, HIDDEN = ((8, 7, 7),), 32
TEACHER_SEED = 100
"""No student has this seed."""
USED_BY = ("agents.trainer", "agents.engines.synchronous", "agents.observations", "agents.plan")


class Quadrants:
    """K games with the interface of `AtariEnvs`."""

    game = "breakout"

    def __init__(self, protocol: Protocol, num_envs: int, *, num_threads: int = 1) -> None:
        """Prepare the games; `reset` must come next."""
        self.num_envs, self.actions = num_envs, ACTIONS
        self._answers = np.array(ANSWERS[self.game])

    def reset(self, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Start the games."""
        self._rng, self._steps = np.random.default_rng(seed), 0
        self._scores = np.zeros(self.num_envs)
        return self._next()

    def _next(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        self._quadrant = self._rng.integers(4, size=self.num_envs)
        cells = self._rng.integers(0, 120, (self.num_envs, 2, CELLS // 2, 2, CELLS // 2), dtype=np.uint8)
        cells[np.arange(self.num_envs), self._quadrant // 2, :, self._quadrant % 2] += 80
        screens = cells.reshape(-1, CELLS, CELLS).repeat(CELL, axis=1).repeat(CELL, axis=2)
        return np.repeat(screens[:, None], 4, axis=1)

    def step(self, actions: np.ndarray[Any, Any]) -> Transition:
        """Play one step of each game."""
        rewards = (actions == self._answers[self._quadrant]).astype(np.float32)
        self._scores += rewards
        self._steps += 1
        over = np.full(self.num_envs, self._steps % LENGTH == 0)
        games = tuple(Episode(int(k), float(self._scores[k]), LENGTH, False) for k in np.flatnonzero(over))
        self._scores[over] = 0.0
        return Transition(self._next(), rewards, over, np.zeros_like(over), None, games)


def playing(game: str) -> ExitStack:
    """A context in which the library plays the toy game."""
    stack = ExitStack()
    for module in USED_BY:
        stack.enter_context(patch(f"{module}.AtariEnvs", type("Toy", (Quadrants,), {"game": game})))
    return stack


def settings(folder: Path, seed: int, steps: int, **more: Any) -> TrainConfig:
    """Settings of a run on the toy game."""
    return TrainConfig(
        game="Breakout",
        algo="ppo",
        ppo=PPOConfig(batch_size=64),
        envs_per_worker=16,
        t_max=8,
        lr=1e-3,
        steps=steps,
        seed=seed,
        convs=CONVS,
        hidden=HIDDEN,
        curve_points=0,
        eval_episodes=0,
        run_dir=folder,
        **more,
    )


def train_teachers(folder: Path, steps: int) -> dict[str, Path]:
    """Train the expert and the two agents of other games, and write the random net; returns their files."""
    files = {}
    for game in ANSWERS:
        files[game] = folder / f"{game}.safetensors"
        if not files[game].exists():
            with playing(game):
                result = agents.train(settings(folder / game, TEACHER_SEED, steps))
            save_agent(files[game], result.student, Card(game, ACTIONS, arch_of(result.student)))
            print(
                game, [row.get("charts/episodic_return") for row in read_metrics(result.folder / "metrics.csv")][::100]
            )
    seed_everything(TEACHER_SEED)
    net = AtariNet(len(ACTIONS), CONVS, HIDDEN)
    files["alien"] = folder / "random.safetensors"
    save_agent(files["alien"], net, Card("alien", ACTIONS, net.arch))
    return files


def study(folder: Path, files: dict[str, Path], seed: int, steps: int, every: int) -> list[dict[str, str]]:
    """Train a student with the pool; returns the rows of its history.csv."""
    pool = ("alien", "pong", "seaquest", "breakout")
    pooled = {"fold_at": None, "linked_teachers": 2, "review_every": every, "review_games": 50}
    run = settings(folder / f"student-{seed}", seed, steps, method="knowledge-flow", methods={"knowledge-flow": pooled})
    with playing("breakout"):
        result = agents.train(replace(run, teachers=",".join(str(files[name]) for name in pool)))
    return read(result.folder / "history.csv")


def main() -> None:
    """Train the teachers, then a student for each seed; print the teachers linked at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=800)
    parser.add_argument("--teacher-steps", type=int, default=10_000)
    parser.add_argument("--verbose", action="store_true")
    held = dropped = 0
    parser.add_argument("--folder", type=Path, help="where the runs are kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = args.folder or Path(temporary)
        place.mkdir(exist_ok=True)
        files = train_teachers(Path(place), args.teacher_steps)
        for seed in range(1, args.seeds + 1):
            rows = study(Path(place), files, seed, args.steps, args.every)
            last = [row["teacher"] for row in rows[-len(files) :] if row["linked"] == "1"]
            came = next((row["global_step"] for row in rows if row["teacher"] == "breakout" and row["event"]), "never")
            left = [r["global_step"] for r in rows if r["teacher"] == "breakout" and r["event"] == "dropped"]
            held += "breakout" in last
            dropped += "alien" not in last
            print(f"seed {seed}: {', '.join(last)}; the expert came at {came}, left at {left}", flush=True)
            if args.verbose:
                for row in rows:
                    print("  ", {k: v for k, v in row.items() if v})
    print(f"the expert is held in {held} of {args.seeds} seeds, the random one dropped in {dropped}")


if __name__ == "__main__":
    main()
