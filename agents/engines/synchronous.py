"""Synchronous engines, A2C and PPO, on CPU or GPU; reproducible on the CPU."""

from __future__ import annotations

import itertools
import time
import traceback
from abc import abstractmethod

import torch

from agents.batch import Rollout
from agents.engines.optimisers import RMSpropTF, SharedAdam
from agents.engines.processes import keep_memory
from agents.engines.shared import bind
from agents.engines.update import HopelessError, Optimiser, Report, Updater
from agents.methods.base import NetSpec
from agents.objective import Samples, a3c_terms, ppo_terms, with_gradient
from agents.rollout import Collector, Stored
from agents.trainer import Trainer
from envs.atari import AtariEnvs
from kfrl.machine import cores
from kfrl.seeding import seed_everything, stream

TICK_SECONDS = 0.2


class SyncTrainer(Trainer):
    """One learner in this process. With several games, it makes a rollout and an update of each in turn."""

    keep_graph = True
    """Whether each rollout has one update, which can use the activations of the acting passes."""

    def place(self) -> None:
        """Move the net and the teachers to the device."""
        self.net.to(self.run.config.device)
        for teacher in self.run.teachers:
            teacher.net.to(self.run.config.device)

    def learn(self) -> None:
        """Update until the steps are done or the run is `stopping`."""
        try:
            self._learn()
        except HopelessError as error:
            self.fail(str(error), resumable=False)
        except Exception:
            self.fail(f"The learner failed:\n{traceback.format_exc()}")
        for net in (self.net, *(teacher.net for teacher in self.run.teachers)):
            net.cpu()

    def _learn(self) -> None:
        shape = self.run.config.shape
        seed = stream(self.run.config.seed, 1 + 1000 * self.session + 1_000_000 * self.phase_index)
        seed_everything(seed)
        keep_memory()
        grads = torch.zeros_like(self.shared.parameters)
        bind(self.groups, self.shared.parameters, grads)
        imitates = self.phase.imitates
        optimiser = SharedAdam(self.shared, self.groups, shape.max_grad_norm) if imitates else self.optimiser()
        updater = Updater(self.method, self.net, self.shared, grads, optimiser, rank=0)
        update = self._imitate if imitates else self.update
        tasks = self.phase.games
        turns = itertools.cycle([(task, self._collector(task, seed + place)) for place, task in enumerate(tasks)])
        ticked = time.monotonic()
        while self.shared.global_step < self.phase.steps and not self.stopping:
            progress = self.progress
            task, collector = next(turns)
            self.method.task = task
            self.method.schedule(self.net, progress)
            rollout = collector.collect()
            self.method.after_rollout(rollout)
            report = Report(task.game, list(rollout.episodes))
            update(rollout, updater, progress, report)
            counter = self.shared.steps if self.counts(task) else self.shared.other_steps
            counter[1] += rollout.actions.numel()
            self.take(report)
            while self.review() and not self.stopping:
                pass
            if time.monotonic() - ticked > TICK_SECONDS:
                self.tick()
                ticked = time.monotonic()

    def _collector(self, task: NetSpec, seed: int) -> Collector | Stored:
        shape, device = self.run.config.shape, self.run.config.device
        games, t_max = shape.envs_per_worker // len(self.phase.games), self.phase.t_max or shape.t_max
        if self.phase.stored:
            return Stored(games, t_max, len(task.actions), device)
        envs = AtariEnvs(self.run.rules(task), games, num_threads=min(cores(), games))
        return Collector(envs, self.method, self.net, t_max, seed, keep_graph=self.keep_graph, device=device)

    def _imitate(self, rollout: Rollout, updater: Updater, progress: float, report: Report) -> None:
        rollout = with_gradient(self.method, self.net, rollout)
        terms = a3c_terms(self.method, self.net, rollout, progress, self.run.config)
        updater.update(rollout, terms, self.lr, progress, report)

    @abstractmethod
    def optimiser(self) -> Optimiser:
        """Build the optimiser."""

    @abstractmethod
    def update(self, rollout: Rollout, updater: Updater, progress: float, report: Report) -> None:
        """Learn from one rollout."""


class A2CTrainer(SyncTrainer):
    """One update for each rollout, with A3C's losses as means over it (OpenAI baselines' A2C)."""

    first_squares = 1.0

    def optimiser(self) -> Optimiser:
        """Build RMSProp in TensorFlow's form."""
        return RMSpropTF(self.shared, self.groups, self.run.config.shape.max_grad_norm, start=self.first_squares)

    def update(self, rollout: Rollout, updater: Updater, progress: float, report: Report) -> None:
        """Make one update."""
        config = self.run.config
        rollout = with_gradient(self.method, self.net, rollout)
        terms = a3c_terms(self.method, self.net, rollout, progress, config)
        means = {name: term / len(rollout.rewards) for name, term in terms.items()}
        updater.update(rollout, means, self.lr, progress, report)


class PPOTrainer(SyncTrainer):
    """Several epochs of minibatches over each rollout, with clipped probability ratios."""

    keep_graph = False

    def optimiser(self) -> Optimiser:
        """Build Adam with the epsilon of the published code."""
        return SharedAdam(self.shared, self.groups, self.run.config.shape.max_grad_norm, eps=1e-5)

    def update(self, rollout: Rollout, updater: Updater, progress: float, report: Report) -> None:
        """Make `epochs` passes over the rollout, each in a new random order."""
        config = self.run.config
        samples = Samples.of(rollout, self.method.rewards(self.net, rollout), config)
        episodes = rollout.episodes
        for _ in range(config.ppo.epochs):
            for indices, games in samples.shuffled(config.ppo.batch_size):
                batch = with_gradient(self.method, self.net, samples.pick(indices, episodes, games))
                terms = ppo_terms(self.method, self.net, batch, progress, config)
                updater.update(batch, terms, self.lr, progress, report)
                episodes = ()
