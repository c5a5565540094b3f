"""One A3C worker: sync -> collect rollout -> loss -> push gradients."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from agents.a3c.rollout import Collector, Rollout
from agents.a3c.shared_adam import SharedAdam, SharedModel, bind, flatten
from agents.config import TrainConfig
from agents.methods import get_method
from agents.methods.base import Batch, Method, NetSpec
from envs.atari import AtariEnvs, Episode
from envs.protocols import Protocol
from kfrl.losses.actor_critic import entropy, n_step_returns, policy_loss, value_loss
from kfrl.seeding import seed_everything, stream
from kfrl.teachers.formats import Teacher

MAX_CONSECUTIVE_DROPS = 50
REPORT_SECONDS = 0.5


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


@dataclass
class Report:
    """What a worker tells the launcher now and then."""

    episodes: list[tuple[int, Episode]] = field(default_factory=list)
    """(global step, game) of the games that ended."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums over updates of what is logged."""
    updates: int = 0
    error: str | None = None
    """The traceback of what ended this worker."""

    def add(self, values: Mapping[str, float]) -> None:
        """Count one update."""
        self.updates += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class NonFiniteError(RuntimeError):
    """Gradients stayed NaN or infinite; training on would only hide it."""


def run_worker(job: Job, connection: Connection) -> None:
    """Train until the run's steps are done or the launcher says stop. Entry point of a spawned process."""
    # Ctrl-C reaches the whole process group; the launcher decides, the workers finish their rollout.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        _train(job, connection)
    except Exception:
        connection.send(Report(error=traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        connection.close()


def _train(job: Job, connection: Connection) -> None:
    config, shared = job.config, job.shared
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
    optimiser = SharedAdam(shared, groups, config.max_grad_norm)
    envs = AtariEnvs(job.protocol, config.envs_per_worker)
    collector = Collector(envs, method, net, config.t_max, seed)

    launcher = os.getppid()
    report, reported, drops = Report(), time.monotonic(), 0
    while (done := shared.global_step) < config.steps and not shared.stop[0]:
        if os.getppid() != launcher:
            return
        progress = done / config.steps
        local.copy_(shared.parameters)
        method.before_rollout(net, progress)
        rollout = collector.collect()
        grads.zero_()
        terms = losses(method, net, rollout, progress, config)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        norm = optimiser.push(grads, config.learning_rate * (1.0 - progress))
        if norm is None:
            drops += 1
            shared.dropped[1 + job.rank] += 1
            _refuse_endless_drops(drops, terms)
        else:
            drops = 0
            method.after_update(shared_net, progress)
            values = {f"losses/{name}": float(term.detach()) for name, term in terms.items()}
            report.add(values | {"charts/grad_norm": norm})
        shared.updates[1 + job.rank] += 1
        shared.steps[1 + job.rank] += rollout.actions.numel()
        report.episodes += [(shared.global_step, episode) for episode in rollout.episodes]
        if time.monotonic() - reported > REPORT_SECONDS:
            connection.send(report)
            report, reported = Report(), time.monotonic()
    connection.send(report)


def losses(method: Method, net: nn.Module, rollout: Rollout, progress: float, config: TrainConfig) -> dict[str, Tensor]:
    """Every term of the objective by name, weighted: A3C's own and the method's.

    Summed over the rollout's steps, as A3C does, and averaged over its environments, so that a worker with K games
    has the mean gradient of K workers with one.
    """
    num_envs = rollout.actions.shape[1]
    obs = rollout.obs.flatten(0, 1)
    logits, values = method.forward(net, obs, rollout.context)
    returns = n_step_returns(
        rollout.rewards,
        rollout.terminated,
        rollout.truncated,
        rollout.truncated_values,
        rollout.bootstrap,
        config.gamma,
    ).flatten()
    advantages = returns - values.detach()
    terms = {
        "policy": policy_loss(logits, rollout.actions.flatten(), advantages).sum() / num_envs,
        "value": config.value_loss_coef * value_loss(values, returns).sum() / num_envs,
        "entropy": -config.entropy_coef * entropy(logits).sum() / num_envs,
    }
    scores = tuple(episode.score for episode in rollout.episodes)
    batch = Batch(obs, rollout.context, logits, values, scores, num_envs)
    return terms | method.losses(net, batch, progress)


def _refuse_endless_drops(drops: int, terms: Mapping[str, Tensor]) -> None:
    if drops < MAX_CONSECUTIVE_DROPS:
        return
    values = ", ".join(f"{name} {float(term.detach()):g}" for name, term in terms.items())
    raise NonFiniteError(
        f"{drops} updates in a row had a non-finite gradient (last losses: {values}). The parameters have probably "
        "diverged: resume from an earlier checkpoint with a smaller --lr."
    )


ENVIRONMENT = {
    # One thread a worker, capped before torch is imported there.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # glibc would hand a rollout's tensors back to the system after each update and fault them in again.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}
"""What workers need set before they start."""


@contextmanager
def worker_environment() -> Iterator[None]:
    """Set `ENVIRONMENT` for the processes started inside, where the user did not set it."""
    added = ENVIRONMENT.keys() - os.environ.keys()
    os.environ.update({name: ENVIRONMENT[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
