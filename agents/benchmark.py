"""Benchmark of emulation, training and evaluation on this machine: steps a second, measured in turns."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.config import FAST_ENVS, TrainConfig
from agents.engines.acktr import FIRST_UPDATES, steady
from agents.evaluation.play import SIDE_BY_SIDE, evaluate
from agents.launch import Session
from agents.teachers.formats import Card, save_agent
from envs.atari import AtariEnvs, action_set
from envs.games import Game, find_game, flavours_of
from envs.protocols import get_protocol
from kfrl.devices import check_device
from kfrl.errors import unknown
from kfrl.machine import cores
from kfrl.nets.atari.net import AtariNet
from kfrl.training.status import Status

WARM_UP = 2.0
"""Seconds after the first step that are not measured."""
EVALUATION_STEPS = 400
"""Cap of the games in the evaluation arms, in agent steps, so that every round plays games of equal length."""


@dataclass(frozen=True)
class Sample:
    """One measurement of one arm."""

    steps_per_sec: float
    pss_mb: tuple[float, ...] = ()
    """Proportional set size of each process, the launcher's first; their sum counts shared memory once."""


COLUMNS = ("", "steps/s", "frames/s", "of the ceiling", "of fast", "memory")


@dataclass
class BenchmarkArm:
    """An arm of the benchmark: a way to make agent steps, with its measurements."""

    name: str
    title: str
    measure: Callable[[float], Sample]
    """Measures for a number of seconds."""
    samples: list[Sample] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Median steps a second."""
        return statistics.median(sample.steps_per_sec for sample in self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest rate."""
        rates = [sample.steps_per_sec for sample in self.samples]
        return min(rates), max(rates)


class Benchmark:
    """The arms for one game. `run` measures them in turns, so that a busy minute affects all of them equally."""

    def __init__(self, game: str, folder: Path, *, device: str = "cpu") -> None:
        """Prepare the arms.

        Args:
            game: The game, in any spelling.
            folder: The folder for the runs' files; the caller deletes it.
            device: The device of a2c and ppo.

        Raises:
            UserError: there is no such game, or no such device on this machine.
        """
        check_device(device)
        self.protocol = get_protocol("paper", find_game(game).name)
        self._folder, self._device = folder, device
        self._runs = 0
        self._game, self._teachers = find_game(game).title, [self._teacher(index) for index in (1, 2)]
        fast, period = TrainConfig(preset="fast").shape, TrainConfig().acktr.inverse_period
        arms = [
            BenchmarkArm("ceiling", f"emulator alone, {cores()} threads", self._ceiling),
            BenchmarkArm("random", "random policy, our environments", self._random),
            self.training("paper", "a3c, the paper's shape: 16 workers x 1 game"),
            self.training("fast", f"a3c, --preset fast: {fast.workers} x {fast.envs_per_worker}"),
            *(
                self.training(f"fast-{workers}", f"the same, {workers} x {fast.envs_per_worker}", workers=workers)
                for workers in (2**power for power in range((cores() - 1).bit_length()))
            ),
            self.training("flow-1", "the same, flow from one teacher, as published"),
            self.training("flow-2", "the same, from two"),
            self.training("flow-imitation", "imitation of a linked net with one teacher"),
            self.training("a2c", "a2c, --preset fast"),
            self.training("acktr", f"acktr, --preset fast, whole periods of {period} updates after {FIRST_UPDATES}"),
            self.training("ppo", "ppo, --preset fast"),
            *self._in_another_flavour(),
            BenchmarkArm("evaluation", f"evaluation, {SIDE_BY_SIDE} games side by side", self._evaluation),
            BenchmarkArm(
                "evaluation-1", "evaluation, one game after the other", lambda s: self._evaluation(s, num_envs=1)
            ),
        ]
        self.arms = {arm.name: arm for arm in arms}

    def pick(self, names: Sequence[str]) -> None:
        """Keep only the named arms.

        Raises:
            UserError: there is no such arm.
        """
        for name in names:
            if name not in self.arms:
                raise unknown("benchmark", name, self.arms)
        self.arms = {name: arm for name, arm in self.arms.items() if name in names}

    def run(self, rounds: int, seconds: float) -> Iterator[tuple[int, BenchmarkArm]]:
        """Measure every arm `rounds` times in turns; yields (round, arm) before each measurement."""
        for index in range(rounds):
            for arm in self.arms.values():
                yield index, arm
                arm.samples.append(arm.measure(seconds))

    def share(self, arm: BenchmarkArm, of: str) -> str:
        """The ratio of the arm's rate to another's, as text: the median over rounds of the ratio within a round."""
        if of not in self.arms or arm.name == of:
            return ""
        pairs = zip(arm.samples, self.arms[of].samples, strict=True)
        return f"{statistics.median(one.steps_per_sec / other.steps_per_sec for one, other in pairs):.2f}"

    def row(self, arm: BenchmarkArm) -> tuple[str, ...]:
        """The arm's row of the table with `COLUMNS`; memory is that at the end of the last measurement."""
        low, high = arm.spread
        pss = arm.samples[-1].pss_mb
        workers = f", {sum(pss[1:]) / (len(pss) - 1):,.0f} a worker" if len(pss) > 1 else ""
        return (
            arm.title,
            f"{arm.rate:,.0f} ({low:,.0f} to {high:,.0f})",
            f"{arm.rate * self.protocol.frame_skip:,.0f}",
            self.share(arm, "ceiling"),
            self.share(arm, "fast"),
            f"{sum(pss):,.0f} MB{workers}" if pss else "",
        )

    def _teacher(self, seed: int) -> str:
        """An untrained teacher of the paper's size; its weights do not affect the speed."""
        torch.manual_seed(seed)
        actions = action_set(get_protocol("paper", "alien"))
        net = AtariNet(len(actions))
        path = self._folder / f"teacher{seed}.safetensors"
        save_agent(path, net, Card(game="alien", actions=actions, arch=net.arch))
        return str(path)

    def _in_another_flavour(self) -> list[BenchmarkArm]:
        """The fast shape in the game's first flavour that is not its default; empty without one."""
        game = find_game(self._game)
        others = (flavour for flavour in flavours_of(game.rom) if flavour != game.flavour_in_force)
        return [
            self.training("flavour", f"a3c, --preset fast, flavour {other}", game=f"{Game(game.rom).title}:{other}")
            for other in itertools.islice(others, 1)
        ]

    def training(self, name: str, title: str = "", **settings: Any) -> BenchmarkArm:
        """An arm that trains by `--preset fast`, but for what its name says and `settings`."""
        one, two = self._teachers[0], ",".join(self._teachers)
        published = {"choose_channels": False, "match_scales": False, "fold_at": None, "link_heads": "never"}
        imitation = {"fold_at": 0.0, "fold_observations": 4_096, "imitate": "always", "imitation_steps": 10**9}
        ways: dict[str, dict[str, Any]] = {
            "paper": {"preset": "paper"},
            "flow-1": {"teachers": one, "methods": {"knowledge-flow": published}},
            "flow-2": {"teachers": two, "methods": {"knowledge-flow": published}},
            "flow-imitation": {"teachers": one, "methods": {"knowledge-flow": imitation}},
            "a2c": {"algo": "a2c", "device": self._device},
            "acktr": {"algo": "acktr", "device": self._device},
            "ppo": {"algo": "ppo", "device": self._device},
        }
        endless = TrainConfig(self._game, steps=10**9, preset="fast", curve_points=0, checkpoint_every=1e9)
        config = replace(endless, **ways.get(name, {}) | settings)

        def measure(seconds: float) -> Sample:
            self._runs += 1
            session = Session.start(replace(config, run_dir=self._folder / f"{name}-{self._runs}"))
            clock = Stopwatch.of(session.run.config, seconds)
            session.prepare(clock)
            session.trainer.train()
            return clock.sample()

        return BenchmarkArm(name, title, measure)

    def _ceiling(self, seconds: float) -> Sample:
        envs = self._all_games()
        return _repeat(envs.emulator.step, envs, seconds)

    def _random(self, seconds: float) -> Sample:
        envs = self._all_games()
        return _repeat(envs.step, envs, seconds)

    def _all_games(self) -> AtariEnvs:
        envs = AtariEnvs(self.protocol, FAST_ENVS * cores(), num_threads=cores())
        envs.reset(0)
        return envs

    def _evaluation(self, seconds: float, num_envs: int | None = None) -> Sample:
        capped = replace(self.protocol, max_frames=EVALUATION_STEPS * self.protocol.frame_skip)
        net = AtariNet(len(action_set(capped)))
        steps, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            result = evaluate(lambda obs: net(obs)[0], capped, episodes=30, num_envs=num_envs, num_threads=cores())
            steps += sum(result.steps)
        return Sample(steps / elapsed)


class Stopwatch:
    """A display that prints nothing: it measures a run's steps a second and memory, and then stops the run."""

    def __init__(self, seconds: float, *, after: int = 0, period: int = 1) -> None:
        """Measure for at least `seconds`.

        Args:
            seconds: Seconds.
            after: Agent steps at the start of the run that are not measured.
            period: Agent steps; the measurement ends after a multiple of them.
        """
        self._seconds, self._after, self._period = seconds, after, period
        self._done = 0
        self._first: float | None = None
        self._start: tuple[float, float] | None = None
        self._end: tuple[float, float] | None = None
        self._pss: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: TrainConfig, seconds: float) -> Stopwatch:
        """The stopwatch for a run. Under acktr each measurement has its share of natural steps and decompositions."""
        if config.algo != "acktr":
            return cls(seconds)
        after, period = steady(config)
        return cls(seconds, after=after, period=period)

    def update(self, status: Status) -> None:
        """Note the time and the steps; see `Display`."""
        now = time.perf_counter()
        if self._first is None:
            self._first = now if status.done else None
        elif self._start is None:
            ready = now - self._first > WARM_UP and status.done >= self._after
            self._start = (now, status.done) if ready else None
        elif self._end is None and now - self._start[0] > self._seconds and self._completes_period(status):
            self._end = (now, status.done)
            self._pss = pss_mb()
            os.kill(os.getpid(), signal.SIGINT)

        self._done = int(status.done)

    def _completes_period(self, status: Status) -> bool:
        assert self._start is not None
        begun = self._start[1]
        return (status.done - begun) // self._period > (self._done - begun) // self._period

    def say(self, text: str) -> None:
        """Print nothing."""

    def sample(self) -> Sample:
        """The rate and the memory, after the run."""
        assert self._start is not None
        assert self._end is not None
        return Sample((self._end[1] - self._start[1]) / (self._end[0] - self._start[0]), self._pss)


def pss_mb() -> tuple[float, ...]:
    """Proportional set size of this process and of each of its children, in MB; empty if the system does not tell."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    try:
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    except OSError:
        return ()
    lines = (next(line for line in text.splitlines() if line.startswith("Pss:")) for text in rollups)
    return tuple(int(line.split()[1]) * 1024 / 1e6 for line in lines)


def _repeat(step: Callable[[NDArray[np.int64]], object], envs: AtariEnvs, seconds: float) -> Sample:
    """Measure steps with random actions."""
    generator = np.random.default_rng(0)
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        step(generator.integers(0, len(envs.actions), envs.num_envs))
        count += 1
    return Sample(count * envs.num_envs / elapsed)
