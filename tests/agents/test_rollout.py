from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents.config import TrainConfig
from agents.methods.base import Method
from agents.objective import a3c_terms, with_gradient
from agents.rollout import Collector, Rollout, sample
from envs.atari import AtariEnvs, Transition
from envs.protocols import get_protocol
from kfrl.nets.atari.net import AtariNet

CONFIG = TrainConfig(game="Pong")
T = 3


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
    expected = player.net(second.obs[:2])[1].detach()
    torch.testing.assert_close(first.bootstrap, expected)
    assert first.obs.shape == (T * 2, 4, 84, 84)
    kept = first.obs.clone()
    player.collect()
    assert torch.equal(first.obs, kept), "a rollout's screens are its own"
    assert not torch.equal(first.obs[-2:], second.obs[:2])


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
    beginning = player.net(rollout.obs[4:6])[1].detach()
    assert not torch.allclose(rollout.truncated_values[1], beginning, atol=1e-7, rtol=0)


def test_sampling_follows_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(40_000, 1)
    counts = torch.bincount(sample(logits, torch.Generator().manual_seed(0)), minlength=3)
    torch.testing.assert_close(counts / counts.sum(), logits[0].softmax(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("num_envs", [1, 16])
def test_a_kept_graph_gives_the_gradients_of_a_second_pass(num_envs: int) -> None:
    def gradients(keep_graph: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = AtariNet(6)
        envs = AtariEnvs(get_protocol("paper", "Pong"), num_envs)
        rollout: Rollout = Collector(envs, Method(CONFIG), net, T, seed=3, keep_graph=keep_graph).collect()
        assert rollout.output.has_graph == keep_graph
        rewarded = replace(rollout, rewards=torch.arange(T * num_envs).view(T, num_envs) % 3 - 1.0)
        method = Method(CONFIG)
        terms = a3c_terms(method, net, with_gradient(method, net, rewarded), 0.0, CONFIG)
        torch.stack(list(terms.values())).sum().backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    kept, anew = gradients(True), gradients(False)
    assert len(kept) == len(anew) == 10
    for one, other in zip(kept, anew, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_rollout_holds_what_the_acting_policy_said(collector: Callable[..., Collector]) -> None:
    player = collector()
    rollout = player.collect()
    with torch.no_grad():
        logits, values = player.net(rollout.obs)
    torch.testing.assert_close(rollout.logits, logits)
    torch.testing.assert_close(rollout.values, values)
