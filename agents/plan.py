"""Estimate of a run's size, memory and speed before its start; nothing is written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from agents.batch import Rollout
from agents.engines.acktr import by_kfac, log_likelihood
from agents.engines.optimisers import SharedAdam
from agents.engines.shared import SharedModel, bind, flatten
from agents.engines.update import Report, Updater
from agents.engines.worker import MIN_ENVS_TO_KEEP_GRAPH
from agents.methods.base import AnyMethod
from agents.objective import a3c_terms, with_gradient
from agents.rollout import Collector, Stored
from agents.run import Run, layers_to_factor
from envs.atari import AtariEnvs
from kfrl.machine import cores, peak_memory
from kfrl.optim.groups import ParameterGroup
from kfrl.optim.kfac import KroneckerFactors, factored_layers, state_numbers
from kfrl.runs.checkpoint import KEPT

NUMBER = 4
"""Bytes of a parameter."""
STATISTICS = 3
"""Numbers for each parameter: its value and the optimiser's two moments."""
LOGS = 50e6
"""Bytes for metrics, TensorBoard's events and the plot of a run, an upper bound."""
WORKER = 41e6
"""Bytes of private memory of a worker in the paper's shape (docs/performance.md)."""
MEASURED = 2.0
"""Fewest seconds of play and updates for the measurement of a rate."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run on a game: its method, its net and its sizes."""

    method: AnyMethod
    net: nn.Module
    trained: int
    """Number of parameters that are trained in the first phase."""
    deployed: int | None
    """Number of parameters of the student alone; None if it depends on a later phase."""
    shared: float
    """Bytes of memory that the run's processes share."""
    factors: float
    """Bytes of acktr's factors and eigenvectors; 0 under other algorithms."""
    written: float
    """Bytes of its folder: checkpoints (one more while it is written), the student, and logs."""


def plan_of(run: Run) -> Plan:
    """Build the run's net and compute its sizes."""
    built = run.built()
    method, net = built.method, built.net
    method.begin(net, 0, run.phases[0].games[0], rank=0)
    trained = sum(p.numel() for group in method.parameter_groups(net) for p in group.parameters)
    deployed = sum(p.numel() for p in method.export(net).parameters()) if len(run.phases) == 1 else None
    held = sum(tensor.numel() for tensor in net.state_dict().values())
    teachers = sum(p.numel() for teacher in run.teachers for p in teacher.net.parameters())
    factors = _factor_numbers(run)
    saved = held + (STATISTICS - 1) * trained + factors
    return Plan(
        method=method,
        net=net,
        trained=trained,
        deployed=deployed,
        shared=NUMBER * (STATISTICS * trained + held - trained + teachers),
        factors=NUMBER * factors,
        written=NUMBER * ((KEPT + 1) * saved + held) + LOGS,
    )


def _factor_numbers(run: Run) -> int:
    """Numbers in the factors and eigenvectors of the phase that has most."""
    if run.config.algo != "acktr":
        return 0
    factored = (layers_to_factor(run, index) for index, phase in enumerate(run.phases) if not phase.imitates)
    return max((sum(map(state_numbers, layers.values())) for layers in factored), default=0)


def expected_memory(run: Run, plan: Plan) -> float:
    """Estimated bytes of memory of all processes of a run; for this process, its peak so far."""
    peak = peak_memory()
    if run.config.algo != "a3c":
        return peak + plan.shared + plan.factors + plan.method.memory_bytes
    own = WORKER + 3 * NUMBER * plan.trained
    return peak + plan.shared + run.config.shape.workers * own + plan.method.memory_bytes


def expected_rate(run: Run, plan: Plan) -> float:
    """Estimated agent steps a second of the run's first phase, from a measurement of one learner in this process.

    Assumes that as many learners as there are cores run at this speed. It measures one update of A3C for each rollout,
    and under acktr K-FAC's work for it; ppo, with several passes over a rollout, is slower.
    """
    shape, asynchronous = run.config.shape, run.config.algo == "a3c"
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if asynchronous else threads)
    try:
        seconds = _seconds_a_step(run, plan, keep_graph=shape.envs_per_worker >= MIN_ENVS_TO_KEEP_GRAPH)
    finally:
        torch.set_num_threads(threads)
    return (min(shape.workers, cores()) if asynchronous else 1) / seconds


def _seconds_a_step(run: Run, plan: Plan, *, keep_graph: bool) -> float:
    config, shape, phase = run.config, run.config.shape, run.phases[0]
    method, net = plan.method, plan.net
    groups = method.parameter_groups(net)
    shared = SharedModel.create(groups, 1)
    local, grads = flatten(groups), torch.zeros_like(shared.parameters)
    bind(groups, local, grads)
    updater = Updater(method, net, shared, grads, SharedAdam(shared, groups, shape.max_grad_norm), rank=0)
    task = phase.games[0]
    games, t_max = shape.envs_per_worker, phase.t_max or shape.t_max
    collector: Collector | Stored = Stored(games, t_max, len(task.actions))
    if not phase.stored:
        envs = AtariEnvs(run.rules(task), games, num_threads=1 if config.algo == "a3c" else cores())
        collector = Collector(envs, method, net, t_max, seed=0, keep_graph=keep_graph)
    steps, started = 0, 0.0
    while not steps or time.perf_counter() - started < MEASURED:
        rollout = with_gradient(method, net, collector.collect())
        updater.update(rollout, a3c_terms(method, net, rollout, 0.0, config), 0.0, 0.0, Report())
        # The first rollout is a warm-up.
        steps += rollout.actions.numel() if started else 0
        started = started or time.perf_counter()
    seconds = (time.perf_counter() - started) / steps
    if config.algo == "acktr" and not phase.imitates:
        seconds += _seconds_of_factors(run, plan, groups, rollout) / rollout.actions.numel()
    return seconds


def _seconds_of_factors(run: Run, plan: Plan, groups: Sequence[ParameterGroup], rollout: Rollout) -> float:
    """Seconds that K-FAC adds to an update: Fisher pass, natural gradient and its share of a decomposition."""
    config, method, net = run.config.acktr, plan.method, plan.net
    factors = KroneckerFactors(factored_layers(net, by_kfac(groups)), {})
    context = tuple(part[: config.fisher_samples] for part in rollout.context)
    times = [time.perf_counter()]
    with torch.enable_grad(), factors.recording():
        output = method.forward(net, rollout.obs[: config.fisher_samples], context)
    factors.observe(log_likelihood(output.logits, output.values, torch.Generator()))
    times.append(time.perf_counter())
    factors.decompose()
    times.append(time.perf_counter())
    factors.natural(config.damping)
    times.append(time.perf_counter())
    fisher, decomposition, natural = (end - start for start, end in itertools.pairwise(times))
    return fisher + decomposition / config.inverse_period + natural
