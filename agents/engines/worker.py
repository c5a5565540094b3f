"""An A3C worker: copy the parameters, collect a rollout, compute the losses, push the gradients."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from agents.config import TrainConfig
from agents.engines.optimisers import RMSpropTF, SharedAdam
from agents.engines.processes import keep_memory, launcher_alive
from agents.engines.shared import SharedModel, bind, flatten
from agents.engines.update import HopelessError, Report, Updater
from agents.methods import get_method
from agents.methods.base import AnyMethod, NetSpec, Phase
from agents.objective import a3c_terms, with_gradient
from agents.rollout import Collector, Stored
from agents.teachers.formats import Teacher
from envs.atari import AtariEnvs
from envs.protocols import Protocol
from kfrl.seeding import seed_everything, stream
from kfrl.training.signals import ignore_signals

REPORT_SECONDS = 0.5
MIN_ENVS_TO_KEEP_GRAPH = 8
"""Fewest environments with which keeping the graph is faster: a backward pass for each step, instead of one forward
and one backward pass over the whole rollout."""


@dataclass(frozen=True)
class Job:
    """The task of one worker."""

    rank: int
    config: TrainConfig
    protocol: Protocol
    """The protocol of the worker's game."""
    spec: NetSpec
    """The run's own game."""
    teachers: tuple[Teacher, ...]
    phase: Phase
    phase_index: int
    task: NetSpec
    """The worker's game."""
    counter: Tensor
    """(1 + workers,) the counters for its steps."""
    fixed: dict[str, Tensor]
    """The tensors of the net that are not trained, by name, in shared memory."""
    shared: SharedModel
    session: int
    """Number of times that the run was resumed; it changes the random numbers."""
    scores: tuple[float, ...]
    """Raw scores of the phase's latest games in `task`, of all workers, if the run is resumed."""


def run_worker(job: Job, connection: Connection) -> None:
    """Train until the phase's steps are done or the launcher stops the workers. Entry point of a worker process."""
    # Ctrl-C reaches the whole process group; the launcher handles it, and the workers finish their rollout.
    ignore_signals()
    torch.set_num_threads(1)
    keep_memory()
    try:
        _train(job, connection)
    except HopelessError as error:
        connection.send(Report(error=str(error), hopeless=True))
        raise SystemExit(1) from None
    except Exception:
        connection.send(Report(error=traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        connection.close()


def _train(job: Job, connection: Connection) -> None:
    config, shape, shared = job.config, job.config.shape, job.shared
    seed = stream(config.seed, 1 + job.rank + 1000 * job.session + 1_000_000 * job.phase_index)
    seed_everything(seed)
    method = get_method(config.method_name)(config)
    net = _build(method, job)
    groups = method.parameter_groups(net)
    local, grads = flatten(groups), torch.zeros_like(shared.parameters)
    bind(groups, local, grads)
    shared_net = _build(method, job)
    bind(method.parameter_groups(shared_net), shared.parameters)
    method.recall(job.scores)
    rmsprop = config.optimizer == "rmsprop" and not job.phase.imitates
    optimiser = (RMSpropTF.of_a3c if rmsprop else SharedAdam)(shared, groups, shape.max_grad_norm)
    updater = Updater(method, shared_net, shared, grads, optimiser, job.rank)
    collector = _collector(method, net, job, seed)

    report, reported = Report(job.task.game), time.monotonic()
    while (done := shared.global_step) < job.phase.steps and not shared.stop[0]:
        if not launcher_alive():
            return
        progress = done / job.phase.steps
        local.copy_(shared.parameters)
        method.schedule(net, progress)
        rollout = with_gradient(method, net, collector.collect())
        method.after_rollout(rollout)
        terms = a3c_terms(method, net, rollout, progress, config)
        updater.update(rollout, terms, shape.lr * job.phase.lr_share(progress), progress, report)
        job.counter[1 + job.rank] += rollout.actions.numel()
        report.episodes += rollout.episodes
        if time.monotonic() - reported > REPORT_SECONDS:
            connection.send(report)
            report, reported = Report(job.task.game), time.monotonic()
    connection.send(report)


def _collector(method: AnyMethod, net: nn.Module, job: Job, seed: int) -> Collector | Stored:
    games, t_max = job.config.shape.envs_per_worker, job.phase.t_max or job.config.shape.t_max
    if job.phase.stored:
        return Stored(games, t_max, len(job.task.actions))
    keep_graph = games >= MIN_ENVS_TO_KEEP_GRAPH
    return Collector(AtariEnvs(job.protocol, games), method, net, t_max, seed, keep_graph=keep_graph)


def _build(method: AnyMethod, job: Job) -> nn.Module:
    """Build the net for the phase; its trained parameters still have their initial values."""
    net: nn.Module = method.build(job.spec, job.teachers)
    net.load_state_dict(job.fixed, strict=False, assign=True)
    method.begin(net, job.phase_index, job.task, job.rank)
    return net
