import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kfrl.losses.actor_critic import (
    clipped_policy_loss,
    entropy,
    gae_advantages,
    n_step_returns,
    policy_loss,
    value_loss,
)

GAMMA = 0.5


def column(*values: float) -> Tensor:
    return torch.tensor(values).unsqueeze(1)


def flags(*steps: int, length: int = 4) -> Tensor:
    return torch.tensor([[step in steps] for step in range(length)])


def returns(
    terminated: tuple[int, ...] = (), truncated: tuple[int, ...] = (), cut_values: Tensor | None = None
) -> list[float]:
    """Four steps with rewards 1 2 3 4 and V = 100 after them."""
    values = torch.zeros(4, 1) if cut_values is None else cut_values
    computed = n_step_returns(
        column(1.0, 2.0, 3.0, 4.0), flags(*terminated), flags(*truncated), values, torch.tensor([100.0]), GAMMA
    )
    assert computed.shape == (4, 1)
    return [float(value) for value in computed[:, 0]]


def test_returns_bootstrap_the_value_after_the_last_step() -> None:
    # 4 + 50; 3 + 27; 2 + 15; 1 + 8.5
    assert returns() == [9.5, 17.0, 30.0, 54.0]


def test_a_terminated_step_bootstraps_zero() -> None:
    assert returns(terminated=(3,)) == [3.25, 4.5, 5.0, 4.0]
    assert returns(terminated=(1,)) == [2.0, 2.0, 30.0, 54.0]
    assert returns(terminated=(0, 2)) == [1.0, 3.5, 3.0, 54.0]


def test_a_truncated_step_bootstraps_the_value_of_the_observation_that_was_cut_off() -> None:
    cut = column(7.0, 20.0, 8.0, 40.0)
    assert returns(truncated=(1,), cut_values=cut) == [7.0, 12.0, 30.0, 54.0]
    assert returns(truncated=(3,), cut_values=cut) == [5.75, 9.5, 15.0, 24.0]
    assert returns(truncated=(1,), terminated=(3,), cut_values=cut) == [7.0, 12.0, 5.0, 4.0]


def test_values_of_steps_that_were_not_truncated_do_not_matter() -> None:
    assert returns(cut_values=column(math.nan, math.inf, 8.0, 9.0)) == returns()


def test_environments_do_not_mix() -> None:
    rewards = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    terminated = torch.tensor([[False, True, False], [False, False, False]])
    truncated = torch.tensor([[False, False, True], [False, False, False]])
    computed = n_step_returns(
        rewards, terminated, truncated, torch.full((2, 3), 40.0), torch.tensor([4.0, 8.0, 16.0]), GAMMA
    )
    assert computed.tolist() == [[3.0, 10.0, 120.0], [4.0, 24.0, 208.0]]


def test_policy_gradient_in_closed_form() -> None:
    logits = torch.randn(5, 4, requires_grad=True)
    actions, advantages = torch.tensor([0, 3, 2, 2, 1]), torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    loss = policy_loss(logits, actions, advantages)
    exponentials = np.exp(logits.detach().numpy())
    p = exponentials / exponentials.sum(1, keepdims=True)
    chosen = p[range(5), actions.numpy()]
    np.testing.assert_allclose(loss.detach(), -np.log(chosen) * advantages.numpy(), rtol=1e-5)
    loss.sum().backward()
    expected = (p - np.eye(4)[actions.numpy()]) * advantages.numpy()[:, None]
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_advantage_is_a_constant() -> None:
    advantages = torch.ones(2, requires_grad=True)
    loss = policy_loss(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1]), advantages)
    loss.sum().backward()
    assert advantages.grad is None


@pytest.mark.parametrize("actions", [2, 4, 18])
def test_entropy_of_a_uniform_policy_is_the_logarithm_of_the_number_of_actions(actions: int) -> None:
    assert entropy(torch.full((3, actions), -7.0)).tolist() == pytest.approx([math.log(actions)] * 3, rel=1e-5)


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[math.log(1), math.log(3)], [0.0, 200.0]])
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(logits).tolist() == pytest.approx([expected, 0.0], rel=1e-5)


def test_value_loss_is_half_the_square_and_pulls_only_the_value() -> None:
    values, target = (torch.tensor(v, requires_grad=True) for v in ([1.0, -2.0], [4.0, -2.0]))
    loss = value_loss(values, target)
    assert loss.tolist() == [4.5, 0.0]
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [-3.0, 0.0]
    assert target.grad is None


def brute_force_gae(
    rewards: list[float], ended: dict[int, float], values: list[float], after: float, discount: float, lam: float
) -> list[float]:
    """Eq. 16 of Schulman et al. 2016 as its sum; `ended` maps a step to the value that follows it."""
    length = len(rewards)
    following = [ended.get(t, after if t == length - 1 else values[t + 1]) for t in range(length)]
    deltas = [rewards[t] + discount * following[t] - values[t] for t in range(length)]
    advantages = []
    for start in range(length):
        last = min([t for t in ended if t >= start], default=length - 1)
        advantages.append(sum((discount * lam) ** (t - start) * deltas[t] for t in range(start, last + 1)))
    return advantages


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize(("terminated", "truncated"), [((), ()), ((1,), ()), ((), (2,)), ((3,), (0,))])
def test_gae_is_the_sum_of_its_equation(
    gae_lambda: float, terminated: tuple[int, ...], truncated: tuple[int, ...]
) -> None:
    rewards, values, cut = [1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 2.0, 5.0], [10.0, 20.0, 30.0, 40.0]
    found = gae_advantages(
        column(*rewards),
        flags(*terminated),
        flags(*truncated),
        column(*cut),
        column(*values),
        torch.tensor([100.0]),
        0.9,
        gae_lambda,
    )
    ended = {t: 0.0 for t in terminated} | {t: cut[t] for t in truncated}
    assert found[:, 0].tolist() == pytest.approx(brute_force_gae(rewards, ended, values, 100.0, 0.9, gae_lambda))


def test_gae_with_lambda_1_is_the_n_step_return_minus_the_value() -> None:
    arguments = column(1.0, 2.0, 3.0, 4.0), flags(0), flags(2), column(9.0, 8.0, 7.0, 6.0)
    values, after = column(1.0, 2.0, 3.0, 4.0), torch.tensor([50.0])
    found = gae_advantages(*arguments, values, after, 0.9, 1.0)
    torch.testing.assert_close(found + values, n_step_returns(*arguments, after, 0.9))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 2.0, -2.2), (1.5, -2.0, 3.0), (0.5, 2.0, -1.0), (0.5, -2.0, 1.8), (1.05, 2.0, -2.1)],
)
def test_the_clipped_objective_is_the_pessimistic_one(ratio: float, advantage: float, expected: float) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])  # pi = 1/4, 3/4
    old = torch.tensor([math.log(0.75 / ratio)])
    found = clipped_policy_loss(logits, torch.tensor([1]), old, torch.tensor([advantage]), 0.1)
    assert found.tolist() == pytest.approx([expected])
