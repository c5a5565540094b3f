"""One A3C worker: sync -> collect rollout -> loss -> push gradients."""

from __future__ import annotations

import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from agents.a3c.shared_adam import SharedAdam
from agents.config import TrainConfig
from agents.methods import get_method
from agents.methods.base import NetSpec
from agents.objective import a3c_terms
from agents.processes import keep_memory, launcher_alive
from agents.rollout import Collector
from agents.shared_model import SharedModel, bind, flatten
from agents.update import Report, Updater
from envs.atari import AtariEnvs
from envs.protocols import Protocol
from kfrl.seeding import seed_everything, stream
from kfrl.teachers.formats import Teacher

REPORT_SECONDS = 0.5
MIN_ENVS_TO_KEEP_GRAPH = 8
"""With fewer games, one backward pass over the whole rollout is faster than one a step, its own forward included."""


@dataclass(frozen=True)
class Job:
    """What one worker is to do."""

    rank: int
    config: TrainConfig
    protocol: Protocol
    spec: NetSpec
    teachers: tuple[Teacher, ...]
    shared: SharedModel
    session: int
    """How often the run was resumed: later sessions see other random numbers."""


def run_worker(job: Job, connection: Connection) -> None:
    """Train until the run's steps are done or the launcher says stop. Entry point of a spawned process."""
    # Ctrl-C reaches the whole process group; the launcher decides, the workers finish their rollout.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_memory()
    try:
        _train(job, connection)
    except Exception:
        connection.send(Report(error=traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        connection.close()


def _train(job: Job, connection: Connection) -> None:
    config, shape, shared = job.config, job.config.shape, job.shared
    seed = stream(config.seed, 1 + job.rank + 1000 * job.session)
    seed_everything(seed)
    method = get_method(config.method_name)(config)
    net = method.build(job.spec, job.teachers)
    groups = method.parameter_groups(net)
    local, grads = flatten(groups), torch.zeros_like(shared.parameters)
    bind(groups, local, grads)
    shared_net = method.build(job.spec, job.teachers)
    shared_groups = method.parameter_groups(shared_net)
    bind(shared_groups, shared.parameters)
    optimiser = SharedAdam(shared, groups, shape.max_grad_norm)
    updater = Updater(method, shared_net, shared, grads, optimiser, job.rank)
    envs = AtariEnvs(job.protocol, shape.envs_per_worker)
    keep_graph = shape.envs_per_worker >= MIN_ENVS_TO_KEEP_GRAPH
    collector = Collector(envs, method, net, shape.t_max, seed, keep_graph=keep_graph)

    report, reported = Report(), time.monotonic()
    while (done := shared.global_step) < config.steps and not shared.stop[0]:
        if not launcher_alive():
            return
        progress = done / config.steps
        local.copy_(shared.parameters)
        method.before_rollout(net, progress)
        rollout = collector.collect()
        terms = a3c_terms(method, net, rollout, progress, config)
        updater.update(terms, shape.lr * (1.0 - progress), progress, report)
        shared.steps[1 + job.rank] += rollout.actions.numel()
        report.episodes += rollout.episodes
        if time.monotonic() - reported > REPORT_SECONDS:
            connection.send(report)
            report, reported = Report(), time.monotonic()
    connection.send(report)
