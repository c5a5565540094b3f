import inspect
from dataclasses import replace

import pytest
import torch
from stable_baselines3 import A2C
from torch import Tensor
from torch.nn import functional

from agents.batch import Batch, Output, Rollout
from agents.config import TrainConfig
from agents.engines.settings import PPOConfig
from agents.methods.base import Method
from agents.objective import Samples, a3c_terms, ppo_terms, with_gradient
from kfrl.nets.atari.net import AtariNet

CONFIG = TrainConfig(game="Pong")
T = 3


def random_rollout(num_envs: int) -> Rollout:
    generator = torch.Generator().manual_seed(1)
    shape = (T, num_envs)
    return Rollout(
        obs=torch.randint(0, 256, (T * num_envs, 4, 84, 84), dtype=torch.uint8, generator=generator),
        actions=torch.randint(0, 6, (T * num_envs,), generator=generator),
        rewards=torch.randn(shape, generator=generator),
        terminated=torch.rand(shape, generator=generator) < 0.2,
        truncated=torch.zeros(shape, dtype=torch.bool),
        truncated_values=torch.zeros(shape),
        bootstrap=torch.randn(num_envs, generator=generator),
        contexts=((),),
        episodes=(),
        num_envs=num_envs,
        output=Output(torch.zeros(T * num_envs, 6), torch.randn(T * num_envs, generator=generator)),
    )


def only(rollout: Rollout, env: int) -> Rollout:
    """The part of one game, as a worker with one game would have collected it."""
    part = {
        name: getattr(rollout, name)[:, env : env + 1]
        for name in ("rewards", "terminated", "truncated", "truncated_values")
    }
    flat = {name: getattr(rollout, name)[env :: rollout.num_envs] for name in ("obs", "actions")}
    return replace(rollout, **part, **flat, num_envs=1, bootstrap=rollout.bootstrap[env : env + 1])


def terms_of(method: Method, net: AtariNet, rollout: Rollout) -> dict[str, Tensor]:
    return a3c_terms(method, net, with_gradient(method, net, rollout), 0.0, method.config)


def ppo_terms_of(method: Method, net: AtariNet, samples: Samples, progress: float = 0.0) -> dict[str, Tensor]:
    """Of all samples as one minibatch."""
    batch = with_gradient(method, net, samples.pick(torch.arange(len(samples.actions))))
    return ppo_terms(method, net, batch, progress, method.config)


def gradient(net: AtariNet, rollout: Rollout) -> Tensor:
    net.zero_grad()
    terms = terms_of(Method(CONFIG), net, rollout)
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


class Sum(Method):
    """A term whose convention is a method's: a sum over time, a mean over environments."""

    def losses(self, net: torch.nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {"ones": torch.ones_like(batch.values).sum() / batch.num_envs}


def ppo_config(**settings: float) -> TrainConfig:
    return TrainConfig(game="Pong", algo="ppo", ppo=PPOConfig(**settings))


def ppo_samples(config: TrainConfig) -> tuple[AtariNet, Samples]:
    """A rollout of 4 games by the very net that learns."""
    torch.manual_seed(0)
    net, rollout = AtariNet(6), random_rollout(4)
    with torch.no_grad():
        output = Output(*net(rollout.obs))
    return net, Samples.of(replace(rollout, output=output), rollout.rewards, config)


def test_samples_keep_their_fields_together() -> None:
    config = ppo_config(gae_lambda=1.0)
    net, samples = ppo_samples(config)
    picked = samples.pick(torch.tensor([5, 2]))
    assert len(samples.actions) == 12
    assert len(picked.actions) == picked.num_envs == 2
    torch.testing.assert_close(picked.obs[0], samples.obs[5])
    with torch.no_grad():
        logits, values = net(picked.obs)
    torch.testing.assert_close(picked.log_probs, logits.log_softmax(1)[torch.arange(2), picked.actions])
    torch.testing.assert_close(picked.returns - picked.advantages, values)


def test_before_the_first_step_ppo_has_the_policy_gradient_of_normalised_advantages() -> None:
    config = ppo_config()
    net, samples = ppo_samples(config)
    terms = ppo_terms_of(Method(config), net, samples)
    terms["policy"].backward()
    found = net.policy.bias.grad
    net.zero_grad()
    normalised = (samples.advantages - samples.advantages.mean()) / samples.advantages.std()
    chosen = net(samples.obs)[0].log_softmax(1)[torch.arange(12), samples.actions]
    (-(chosen * normalised).mean()).backward()
    torch.testing.assert_close(found, net.policy.bias.grad, rtol=1e-4, atol=1e-7)
    # Where every ratio is 1, the loss is minus the mean advantage: 0.
    assert terms["policy"].item() == pytest.approx(0.0, abs=1e-6)


def test_the_clip_range_falls_with_the_run() -> None:
    config = ppo_config(clip_range=0.5)
    net, samples = ppo_samples(config)
    moved = replace(samples, log_probs=samples.log_probs - 0.3)  # every ratio is e^0.3 = 1.35

    def policy(progress: float) -> float:
        return ppo_terms_of(Method(config), net, moved, progress)["policy"].item()

    normalised = (samples.advantages - samples.advantages.mean()) / samples.advantages.std()
    positive, negative = normalised.clamp(min=0).mean().item(), normalised.clamp(max=0).mean().item()
    assert policy(0.0) == pytest.approx(-1.34986 * (positive + negative), abs=1e-4)  # 1.35 < 1.5
    assert policy(0.8) == pytest.approx(-(1.1 * positive + 1.34986 * negative), rel=1e-4)  # clipped at 1.1


def test_ppo_takes_means_over_samples_of_a_methods_terms_too() -> None:
    config = ppo_config()
    net, samples = ppo_samples(config)
    terms = ppo_terms_of(Sum(config), net, samples)
    assert terms["ones"].item() == 1.0
    value = 0.5 * 0.5 * (samples.returns - net(samples.obs)[1]).square().mean().item()
    assert terms["value"].item() == pytest.approx(value, rel=1e-5)
    assert terms_of(Sum(CONFIG), net, random_rollout(4))["ones"].item() == T


def test_the_value_gradient_of_a2c_is_that_of_stable_baselines3() -> None:
    config = TrainConfig(game="Pong", algo="a2c")
    net, ended = AtariNet(6), random_rollout(4)
    ended = replace(ended, terminated=torch.ones_like(ended.terminated))  # returns are the rewards
    (terms_of(Method(config), net, ended)["value"] / T).backward()
    found = net.value.bias.grad
    net.zero_grad()
    # Its A2C.train: value_loss = F.mse_loss(returns, values), times vf_coef.
    vf_coef = inspect.signature(A2C).parameters["vf_coef"].default
    (vf_coef * functional.mse_loss(ended.rewards.flatten(), net(ended.obs)[1])).backward()
    torch.testing.assert_close(found, net.value.bias.grad)


class Taxed(Method):
    """Takes a point from every reward, and leaves the entropy out."""

    def rewards(self, net: torch.nn.Module, rollout: Rollout) -> Tensor:
        return rollout.rewards - 1.0

    def rl_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: term for name, term in terms.items() if name != "entropy"}


def test_a_method_may_change_the_rewards_and_drop_terms() -> None:
    net, rollout = AtariNet(6), random_rollout(2)
    taxed = terms_of(Taxed(CONFIG), net, rollout)
    by_hand = terms_of(Method(CONFIG), net, replace(rollout, rewards=rollout.rewards - 1.0))
    assert list(taxed) == ["policy", "value"]
    for name, term in taxed.items():
        torch.testing.assert_close(term, by_hand[name])
