import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import hessian

from kfrl.losses import curvature
from kfrl.losses.curvature import hessian_norm

IMAGES, LABELS = torch.tensor([[1.0, -0.5], [0.3, 2.0], [-1.0, 0.7]], dtype=torch.float64), torch.tensor([0, 1, 1])
START = torch.linspace(-1.2, 1.1, 14, dtype=torch.float64)


def tiny(weights: Tensor) -> Tensor:
    """The loss of a net of 2 inputs, 2 tanh units and 2 classes, and a cubic term, of all its weights in one vector."""
    first, bias, second = weights[:4].view(2, 2), weights[4:6], weights[6:10].view(2, 2)
    return F.cross_entropy(torch.tanh(IMAGES @ first.T + bias) @ second.T, LABELS) + weights[10:].pow(3).sum()


def parts(weights: Tensor) -> list[Tensor]:
    """The same weights as four parameters."""
    return [part.clone().requires_grad_(True) for part in weights.split([4, 2, 4, 4])]


def test_a_quadratic_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # L = 2 a^2 + 3 a b: H = [[4, 3], [3, 0]], H (1, 2) = (10, 3).
    a, b = (torch.tensor(value, requires_grad=True) for value in (0.7, -0.2))
    drawn = iter([1.0, 2.0])
    monkeypatch.setattr(curvature.torch, "randn_like", lambda like: torch.full_like(like, next(drawn)))
    assert float(hessian_norm(2 * a * a + 3 * a * b, [a, b]).detach()) == pytest.approx(10**2 + 3**2)


def test_over_all_directions_it_is_the_frobenius_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hessian(tiny, START).square().sum()
    total = torch.zeros(())
    for unit in torch.eye(14, dtype=torch.float64):
        held = parts(START)
        drawn = iter(unit.split([4, 2, 4, 4]))
        monkeypatch.setattr(curvature.torch, "randn_like", lambda _, drawn=drawn: next(drawn).clone())
        total = total + hessian_norm(tiny(torch.cat(held)), held).detach()
    torch.testing.assert_close(total, expected)


def test_the_mean_over_draws_is_the_frobenius_norm() -> None:
    held = parts(START)
    loss = tiny(torch.cat(held))
    drawn = torch.stack([hessian_norm(loss, held).detach() for _ in range(4000)])
    expected = hessian(tiny, START).square().sum()
    assert abs(float(drawn.mean() - expected)) < 4 * float(drawn.std()) / 4000**0.5


def test_power_iteration_ends_at_the_largest_eigenvalue() -> None:
    held = parts(START)
    expected = torch.linalg.eigvalsh(hessian(tiny, START)).abs().max().square()
    torch.testing.assert_close(hessian_norm(tiny(torch.cat(held)), held, steps=300), expected)


@pytest.mark.parametrize("steps", [0, 300])
def test_the_gradient_is_that_of_the_norm(steps: int) -> None:
    held = parts(START)
    torch.manual_seed(3)
    found = torch.cat(torch.autograd.grad(hessian_norm(tiny(torch.cat(held)), held, steps), held))
    whole = START.clone().requires_grad_(True)
    matrix = hessian(tiny, whole, create_graph=True)
    if steps:
        norm = torch.linalg.eigvalsh(matrix).abs().max().square()
    else:
        torch.manual_seed(3)
        norm = (matrix @ torch.cat([torch.randn_like(part) for part in held])).square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(norm, whole)[0])


def test_a_flat_loss_has_no_curvature() -> None:
    weights = torch.ones(3, requires_grad=True)
    assert float(hessian_norm((weights - 1).pow(3).sum(), [weights], steps=2).detach()) == 0
