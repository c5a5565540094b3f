from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.a3c.rollout import Collector, Rollout, sample
from agents.a3c.worker import ENVIRONMENT, losses, worker_environment
from agents.config import TrainConfig
from agents.methods.base import Method, NetSpec
from envs.atari import AtariEnvs, Transition
from envs.protocols import get_protocol
from kfrl.nets.atari import AtariNet

CONFIG = TrainConfig(game="Pong")
T = 3


def random_rollout(num_envs: int) -> Rollout:
    generator = torch.Generator().manual_seed(1)
    shape = (T, num_envs)
    return Rollout(
        obs=torch.randint(0, 256, (*shape, 4, 84, 84), dtype=torch.uint8, generator=generator),
        actions=torch.randint(0, 6, shape, generator=generator),
        rewards=torch.randn(shape, generator=generator),
        terminated=torch.rand(shape, generator=generator) < 0.2,
        truncated=torch.zeros(shape, dtype=torch.bool),
        truncated_values=torch.zeros(shape),
        bootstrap=torch.randn(num_envs, generator=generator),
        context=(),
        episodes=(),
    )


def only(rollout: Rollout, env: int) -> Rollout:
    """The part of one game, as a worker with one game would have collected it."""
    part = {
        name: getattr(rollout, name)[:, env : env + 1]
        for name in ("obs", "actions", "rewards", "terminated", "truncated", "truncated_values")
    }
    return replace(rollout, **part, bootstrap=rollout.bootstrap[env : env + 1])


def gradient(net: AtariNet, rollout: Rollout) -> Tensor:
    net.zero_grad()
    terms = losses(Method(CONFIG), net, rollout, 0.0, CONFIG)
    torch.stack(list(terms.values())).sum().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("num_envs", [2, 16])
def test_a_worker_with_k_games_has_the_mean_gradient_of_k_workers_with_one(num_envs: int) -> None:
    net, rollout = AtariNet(6), random_rollout(num_envs)
    together = gradient(net, rollout)
    alone = torch.stack([gradient(net, only(rollout, env)) for env in range(num_envs)]).mean(0)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


def test_the_loss_is_summed_over_time() -> None:
    net, rollout = AtariNet(6), random_rollout(1)
    ended = replace(rollout, terminated=torch.ones_like(rollout.terminated))  # every step stands by itself
    steps = [
        replace(
            ended,
            **{name: getattr(ended, name)[t : t + 1] for name in ("obs", "actions", "rewards", "terminated")},
            truncated=ended.truncated[:1],
            truncated_values=ended.truncated_values[:1],
        )
        for t in range(T)
    ]
    torch.testing.assert_close(gradient(net, ended), sum(gradient(net, step) for step in steps), rtol=1e-3, atol=1e-5)


@pytest.fixture
def collector() -> Callable[..., Collector]:
    def build(max_frames: int = 108_000) -> Collector:
        protocol = replace(get_protocol("paper", "Pong"), max_frames=max_frames)
        envs = AtariEnvs(protocol, 2)
        return Collector(envs, Method(CONFIG), AtariNet(6), T, seed=3)

    return build


def test_rollouts_join_without_a_gap(collector: Callable[..., Collector]) -> None:
    player = collector()
    first, second = player.collect(), player.collect()
    expected = player.net(second.obs[0])[1].detach()
    torch.testing.assert_close(first.bootstrap, expected)
    assert first.obs.shape == (T, 2, 4, 84, 84)
    assert not torch.equal(first.obs[-1], second.obs[0])


def test_a_truncated_step_bootstraps_the_observation_that_was_cut_off(
    collector: Callable[..., Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    player = collector(max_frames=4 * (T + 2))
    final: list[NDArray[np.uint8]] = []
    step = player.envs.step

    def spy(actions: NDArray[np.int64]) -> Transition:
        transition = step(actions)
        if transition.final_obs is not None:
            final.append(transition.final_obs.copy())
        return transition

    monkeypatch.setattr(player.envs, "step", spy)
    player.collect()
    rollout = player.collect()
    assert rollout.truncated.tolist() == [[False, False], [True, True], [False, False]]
    assert not rollout.terminated.any()
    expected = player.net(torch.from_numpy(final[0]))[1].detach()
    torch.testing.assert_close(rollout.truncated_values[1], expected)
    beginning = player.net(rollout.obs[2])[1].detach()
    assert not torch.allclose(rollout.truncated_values[1], beginning, atol=1e-7, rtol=0)


def test_sampling_follows_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(40_000, 1)
    counts = torch.bincount(sample(logits, torch.Generator().manual_seed(0)), minlength=3)
    torch.testing.assert_close(counts / counts.sum(), logits[0].softmax(0), atol=0.01, rtol=0)


def test_workers_start_with_capped_threads_unless_the_user_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    with worker_environment():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "3")
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["MKL_NUM_THREADS"] == "3"


def test_the_net_of_a_spec_fits_its_game() -> None:
    net = Method(CONFIG).build(NetSpec("pong", ("NOOP", "FIRE")), ())
    assert net(torch.zeros(1, 4, 84, 84, dtype=torch.uint8))[0].shape == (1, 2)
