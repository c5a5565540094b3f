"""Minutes until an agent has a score on this machine: kfrl with an expert as teacher, kfrl from scratch, and others.

    python benchmarks/minutes_to_score.py run --out minutes --teacher breakout-a2c.safetensors --arms kfrl-flow sb3-ppo
    python benchmarks/minutes_to_score.py table --out minutes --score 150

`run` trains one arm after another, each in its own processes with the whole machine, until it is done or its time is
up, and writes `ARM.csv` with the score along the clock (`ARM.part` until then). An arm whose file is there is skipped.

- kfrl-flow, kfrl-a3c, kfrl-ppo: `kfrl train`, from its first step of play. A score is the mean of 10 games of the
  student alone, which is evaluated beside the training and shares its cores.
- sb3-ppo, sb3-a2c: Stable-Baselines3 with the settings that RL Baselines3 Zoo has for Atari, its own net and wrappers.
- cleanrl-ppo: CleanRL's `ppo_atari.py` as it is, with its defaults, from `--cleanrl`, a checkout, by
  `--cleanrl-python`, a Python that has what it needs.

The score of the others is the mean of their latest 100 training games (from 20 games on), whole games in raw points.
"""

from __future__ import annotations

import csv
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tyro
from tabulate import tabulate

from envs.games import find_game
from kfrl.runs.folder import RunFolder
from kfrl.runs.metrics import read_metrics

Arm = Literal["kfrl-flow", "kfrl-a3c", "kfrl-ppo", "sb3-ppo", "sb3-a2c", "cleanrl-ppo"]
LATEST, LEAST = 100, 20
"""Training games that a score is the mean of, and how many there have to be."""
EVERY = 5.0
"""Seconds between two rows of an arm's file."""
ZOO_STEPS = 10_000_000
"""The budget that RL Baselines3 Zoo and CleanRL have, over which their learning rates fall."""
GAME_ENDED = re.compile(r"global_step=(\d+), episodic_return=\[?([-\d.]+)")
"""What CleanRL prints."""


@dataclass(frozen=True)
class Options:
    """Compare the minutes until a score."""

    what: tyro.conf.Positional[Literal["run", "table"]]
    out: Path = Path("minutes")
    """The folder of the arms' files and runs."""
    arms: tuple[Arm, ...] = ("kfrl-flow", "kfrl-a3c", "kfrl-ppo", "sb3-ppo", "sb3-a2c")
    """What to train."""
    game: str = "Breakout"
    """The game."""
    teacher: str = ""
    """The teacher of kfrl-flow."""
    steps: int = 1_000_000
    """Agent steps of kfrl-flow; the scratch arms have the 10M of the others."""
    minutes: float = 60.0
    """Time of an arm, at most."""
    seed: int = 1
    """The seed of all arms."""
    cleanrl: Path | None = None
    """A checkout of CleanRL."""
    cleanrl_python: str = sys.executable
    """The Python that runs it."""
    score: float = 150.0
    """The score of the table."""


def run(arm: Arm, options: Options) -> None:
    """Train an arm and write its file."""
    family, _, name = arm.partition("-")
    found = _kfrl(name, options) if family == "kfrl" else _others(arm, options)
    begun = options.out / f"{arm}.part"
    with begun.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("minutes", "steps", "score"))
        for seconds, steps, score in found:
            writer.writerow((f"{seconds / 60:.2f}", steps, f"{score:.1f}"))
            file.flush()
    begun.rename(options.out / f"{arm}.csv")


def _kfrl(name: str, options: Options) -> list[tuple[float, int, float]]:
    """Scores of the lone student by the clock of the run, which starts when it begins to play."""
    folder = RunFolder(options.out / f"run-{name}")
    flags = {
        "flow": ("--teachers", options.teacher, "--steps", str(options.steps), "--curve-points", "10"),
        "a3c": ("--steps", str(ZOO_STEPS), "--curve-points", "100"),
        "ppo": ("--algo", "ppo", "--steps", str(ZOO_STEPS), "--curve-points", "100"),
    }[name]
    command = ("train", "--game", options.game, "--seed", str(options.seed), "--run-dir", str(folder.path), *flags)
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "kfrl.cli.main", *command])
    while child.poll() is None:
        time.sleep(1.0)
        if time.monotonic() - started > options.minutes * 60:
            child.send_signal(signal.SIGINT)
            child.wait()
    rows = read_metrics(folder.metrics)
    clock = [(row["global_step"], row["time/elapsed_sec"]) for row in rows if "time/elapsed_sec" in row]
    ends = time.monotonic() - started
    return [
        (next((seconds for step, seconds in clock if step >= row["global_step"]), ends), int(row["global_step"]), score)
        for row in rows
        if (score := row.get("eval/mean_return")) is not None
    ]


def _others(arm: Arm, options: Options) -> Iterator[tuple[float, int, float]]:
    """The latest games' mean of a program that prints a line for each game that has ended."""
    if arm == "cleanrl-ppo":
        if options.cleanrl is None:
            sys.exit("cleanrl-ppo needs --cleanrl, a checkout of github.com/vwxyzjn/cleanrl")
        environment = f"{find_game(options.game).title}NoFrameskip-v4"
        flags = ("--env-id", environment, "--seed", str(options.seed), "--no-cuda")
        command: tuple[str, ...] = (options.cleanrl_python, "-u", "cleanrl/ppo_atari.py", *flags)
        paths = {"PYTHONPATH": str(options.cleanrl)}
    else:
        command = (sys.executable, "-u", __file__, "sb3", arm, options.game, str(options.seed))
        paths = {}
    started = time.monotonic()
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=options.cleanrl if paths else None, env=os.environ | paths
    )
    assert program.stdout is not None
    returns: deque[float] = deque(maxlen=LATEST)
    written = 0.0
    for line in program.stdout:
        seconds = time.monotonic() - started
        if ended := GAME_ENDED.search(line):
            returns.append(float(ended[2]))
            if len(returns) >= LEAST and seconds - written > EVERY:
                written = seconds
                yield seconds, int(ended[1]), statistics.fmean(returns)
        if seconds > options.minutes * 60:
            program.terminate()  # A program in the background ignores SIGINT.
            break
    program.wait()


def sb3(arm: str, game: str, seed: int) -> None:
    """Train with SB3 as RL Baselines3 Zoo has it for Atari; prints each game that has ended as CleanRL does."""
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

    class Games(BaseCallback):
        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    print(f"global_step={self.num_timesteps}, episodic_return={info['episode']['r']}", flush=True)
            return True

    def falling(start: float) -> Callable[[float], float]:
        return lambda left: left * start

    # The rules of NoFrameskip-v4, which ale-py no longer registers; SB3's wrapper skips the frames.
    name, rules = f"ale_py:ALE/{find_game(game).title}-v5", {"frameskip": 1, "repeat_action_probability": 0.0}
    ppo = arm == "sb3-ppo"
    envs = make_atari_env(name, n_envs=8 if ppo else 16, seed=seed, env_kwargs=rules, vec_env_cls=SubprocVecEnv)
    kind: Any = PPO if ppo else A2C
    settings: dict[str, Any] = (
        {
            "n_steps": 128,
            "n_epochs": 4,
            "batch_size": 256,
            "learning_rate": falling(2.5e-4),
            "clip_range": falling(0.1),
            "vf_coef": 0.5,
        }
        if ppo
        else {
            "vf_coef": 0.25,
            "policy_kwargs": {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}},
        }
    )
    model = kind("CnnPolicy", VecFrameStack(envs, 4), ent_coef=0.01, device="cpu", seed=seed, **settings)
    model.learn(ZOO_STEPS, callback=Games())


def scores(folder: Path) -> dict[str, list[tuple[float, int, float]]]:
    """Of each arm's file the minutes, agent steps and scores of its rows."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            found[path.stem] = [(float(row["minutes"]), int(row["steps"]), float(row["score"])) for row in rows]
    return found


def table(options: Options) -> str:
    """Minutes and steps until the score, and each arm's best and last one."""
    rows: list[Sequence[Any]] = []
    for arm, points in scores(options.out).items():
        reached = next(((minutes, steps) for minutes, steps, score in points if score >= options.score), None)
        until = [f"{reached[0]:.1f}", f"{reached[1]:,}"] if reached else ["not reached", ""]
        ends = [f"{points[-1][2]:,.1f}", f"{points[-1][0]:.1f}", f"{points[-1][1]:,}"] if points else ["", "", ""]
        rows.append([arm, *until, f"{max((score for *_, score in points), default=0.0):,.1f}", *ends])
    target = f"{options.score:g}"
    header = ["arm", f"minutes to {target}", f"steps to {target}", "best", "last", "minutes", "agent steps"]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def picture(options: Options) -> None:
    """Draw the scores of all arms along the clock."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for arm, points in scores(options.out).items():
        axes.plot([minutes for minutes, *_ in points], [score for *_, score in points], label=arm)
    axes.axhline(options.score, color="grey", linewidth=0.8)
    axes.set(xlabel="minutes", ylabel="score, raw points", title=options.game)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out / "minutes.png", dpi=110)


def main(options: Options) -> None:
    """Run the arms, or print the table."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "run":
        for arm in options.arms:
            if not (options.out / f"{arm}.csv").exists():
                run(arm, options)
    picture(options)
    print(table(options))


if __name__ == "__main__":
    if sys.argv[1:2] == ["sb3"]:
        sb3(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
