"""K-FAC beside the exact Fisher matrix, which here comes from the gradients of log p alone, by its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.optim.kfac import (
    KroneckerFactors,
    basis,
    factored_layers,
    gradient_of,
    precondition,
    state_numbers,
    statistics,
    trust,
    write_gradient,
)

DAMPING = 0.01


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.manual_seed(3)


def of_log_p(layer: nn.Module, log_p: Tensor) -> Tensor:
    """d log p / d [W, b] as one vector, row by row."""
    gradient = torch.autograd.grad(log_p, list(layer.parameters()), retain_graph=True)
    return torch.cat([gradient[0].flatten(1), gradient[1][:, None]], 1).flatten()


def exact_fisher(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """E over data and actions of the outer product of d log p."""
    fisher = torch.zeros(()).double()
    for x in inputs:
        log_p = layer(x[None]).log_softmax(1)[0]
        for each in log_p:
            gradient = of_log_p(layer, each)
            fisher = fisher + each.exp().detach() * torch.outer(gradient, gradient) / len(inputs)
    return fisher


def factors_of_all_actions(layer: nn.Linear, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The factors in expectation over the actions: each comes once for each datum, weighted by its probability."""
    probabilities = layer(inputs).softmax(1).detach()
    actions = probabilities.shape[1]
    grads = torch.stack([F.one_hot(torch.tensor(a), actions) - probabilities for a in range(actions)], 1)
    weighted = grads * (actions * probabilities[:, :, None]).sqrt()
    found = statistics(layer, inputs.repeat_interleave(actions, 0), weighted.flatten(0, 1))
    return found.inputs, found.outputs


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("data", [1, 7])
def test_a_softmax_layer_on_one_datum_is_the_exact_inverse_and_on_seven_it_is_not(data: int) -> None:
    layer, inputs, gradient = nn.Linear(3, 4).double(), torch.randn(data, 3).double(), torch.randn(4, 4).double()
    fisher = exact_fisher(layer, inputs)
    omega, gamma = factors_of_all_actions(layer, inputs)
    exact = torch.linalg.solve(fisher + DAMPING * torch.eye(16).double(), gradient.flatten()).view(4, 4)
    ours = precondition(gradient, basis(omega), basis(gamma), DAMPING)
    if data == 1:
        assert relative(torch.kron(gamma, omega), fisher) < 1e-10
        assert relative(ours, exact) < 1e-10
    else:
        assert relative(torch.kron(gamma, omega), fisher) > 0.05


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_whose_positions_are_independent_is_exact(bias: bool) -> None:
    layer = nn.Conv2d(2, 3, (3, 2), stride=2, padding=1, bias=bias).double()
    images = torch.randn(5, 2, 6, 7).double()
    z = layer(images)
    # z_t ~ N(., 1): d log p / dz is noise of variance 1, and the Fisher matrix the sum over outputs of dz dz^T.
    jacobian = torch.stack(
        [
            torch.cat([g.flatten(1) if g.dim() == 4 else g[:, None] for g in gradient], 1).flatten()
            for gradient in (
                torch.autograd.grad(each, list(layer.parameters()), retain_graph=True) for each in z.flatten()
            )
        ]
    )
    fisher = jacobian.T @ jacobian / len(images)
    grads = (3**0.5 * torch.eye(3).double())[:, None, :, None, None].expand(3, 5, 3, *z.shape[2:]).flatten(0, 1)
    found = statistics(layer, images.repeat(3, 1, 1, 1), grads)
    assert relative(torch.kron(found.outputs, found.inputs), fisher) < 1e-10
    gradient = torch.randn(3, 12 + bias).double()
    exact = torch.linalg.solve(fisher + DAMPING * torch.eye(len(fisher)).double(), gradient.flatten()).view_as(gradient)
    assert relative(precondition(gradient, basis(found.inputs), basis(found.outputs), DAMPING), exact) < 1e-10


def test_a_batch_that_is_repeated_has_the_same_factors() -> None:
    layer, x, g = nn.Conv2d(1, 2, 2), torch.randn(3, 1, 4, 4), torch.randn(3, 2, 3, 3)
    once, twice = statistics(layer, x, g), statistics(layer, x.repeat(2, 1, 1, 1), g.repeat(2, 1, 1, 1))
    torch.testing.assert_close(once.inputs, twice.inputs)
    torch.testing.assert_close(once.outputs, twice.outputs)


def natural_step(layer: nn.Linear, x: Tensor, loss_of: Tensor, actions: Tensor, damping: float) -> tuple[Tensor, float]:
    """The layer's natural gradient of a loss of its output, and <V, dW>."""
    factors = KroneckerFactors({"only": layer}, {})
    with factors.recording():
        z = layer(x)
    factors.observe(z.log_softmax(1).gather(1, actions).squeeze(1))
    factors.decompose()
    layer.zero_grad()
    (layer(x) * loss_of).mean().backward()
    quadratic = factors.natural(damping)
    return gradient_of(layer), quadratic


def test_the_natural_step_does_not_depend_on_the_scale_of_the_inputs() -> None:
    x, loss_of = torch.randn(200, 3).double(), torch.randn(200, 4).double()
    # A softmax does not see its logits' mean: that direction has no curvature.
    loss_of = loss_of - loss_of.mean(1, keepdim=True)
    actions = torch.randint(4, (200, 1))
    mixed = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.2, 0.5], [1.0, 0.0, -2.0]]).double()
    plain, transformed = nn.Linear(3, 4).double(), nn.Linear(3, 4).double()
    with torch.no_grad():
        transformed.weight.copy_(plain.weight @ torch.linalg.inv(mixed))
        transformed.bias.copy_(plain.bias)
    moved = x @ mixed.T
    torch.testing.assert_close(transformed(moved), plain(x))
    steps = [natural_step(plain, x, loss_of, actions, 1e-9), natural_step(transformed, moved, loss_of, actions, 1e-9)]
    first, second = (
        F.pad(inputs, (0, 1), value=1.0) @ step.T for inputs, (step, _) in zip((x, moved), steps, strict=True)
    )
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
    assert steps[0][1] == pytest.approx(steps[1][1], rel=1e-5)


def test_the_divergence_of_a_step_is_half_of_its_quadratic_form() -> None:
    layer, x = nn.Linear(3, 4).double(), torch.randn(1, 3).double()
    omega, gamma = factors_of_all_actions(layer, x)
    gradient = torch.randn(4).double()[:, None] * F.pad(x, (0, 1), value=1.0)
    gradient -= gradient.mean(0)
    step = precondition(gradient, basis(omega), basis(gamma), 1e-9)
    quadratic, lr = float((step * gradient).sum()), 0.25
    nu = trust(quadratic, lr, 1e-3)
    before = layer(x).log_softmax(1)
    after = (
        F.pad(x, (0, 1), value=1.0) @ (torch.cat([layer.weight, layer.bias[:, None]], 1) - nu * lr * step).T
    ).log_softmax(1)
    divergence = float((before.exp() * (before - after)).sum().detach())
    assert nu < 1
    assert divergence == pytest.approx(nu**2 * lr**2 * quadratic / 2, rel=0.2)
    assert nu**2 * lr**2 * quadratic == pytest.approx(1e-3)


def test_inside_the_trust_region_a_step_stays_as_it_is() -> None:
    assert trust(quadratic=2.0, lr=0.25, radius=0.001) == pytest.approx((0.001 / 0.125) ** 0.5)
    assert trust(quadratic=0.01, lr=0.25, radius=0.001) == 1.0


def test_averages_are_plain_at_first_and_then_forget_and_no_gradient_moves() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.full_like(layer.weight, 7.0)
    layer.bias.grad = torch.zeros(2)
    state: dict[str, Tensor] = {}
    factors = KroneckerFactors({"only": layer}, state, plain_mean=2, decay=0.75)
    batches = [torch.randn(3, 2) for _ in range(3)]
    for batch in batches:
        with factors.recording():
            z = layer(batch)
        factors.observe(z[:, 0])
    rows = [F.pad(batch, (0, 1), value=1.0) for batch in batches]
    each = [a.T @ a / 3 for a in rows]
    torch.testing.assert_close(state["only.inputs"], 0.75 * (each[0] + each[1]) / 2 + 0.25 * each[2])
    torch.testing.assert_close(state["only.outputs"], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert layer.weight.grad.eq(7).all()
    assert int(state["count"]) == 3
    assert not factors.ready
    assert factors.decompose() == []
    resumed = KroneckerFactors({"only": layer}, dict(state))
    assert factors.ready and resumed.ready


def test_a_factor_without_eigenvalues_keeps_its_old_ones() -> None:
    layer = nn.Linear(1, 1)
    state: dict[str, Tensor] = {}
    factors = KroneckerFactors({"only": layer}, state)
    factors.decompose()
    before = state["only.outputs.values"]
    state["only.outputs"] = torch.full((1, 1), float("nan"))
    assert factors.decompose() == ["only.outputs"]
    assert state["only.outputs.values"] is before


def factors_with_a_wide_spectrum() -> tuple[Tensor, Tensor]:
    """Factors in 32 bits whose eigenvalues fall from 3 to 1e-9, as those of a trained net's fully connected layer."""
    found = []
    for size in (60, 20):
        vectors = torch.linalg.qr(torch.randn(size, size).double())[0]
        found.append((vectors * torch.logspace(0.5, -9, size).double()) @ vectors.T)
    return found[0].float(), found[1].float()


def test_a_natural_gradient_in_32_bits_is_that_of_the_exact_inverse() -> None:
    (omega, gamma), gradient = factors_with_a_wide_spectrum(), torch.randn(20, 60)
    fisher = torch.kron(gamma.double(), omega.double())
    exact = torch.linalg.solve(fisher + DAMPING * torch.eye(1200).double(), gradient.double().flatten()).view(20, 60)
    assert relative(precondition(gradient, basis(omega), basis(gamma), DAMPING).double(), exact) < 1e-4


def test_a_decomposition_that_fails_in_32_bits_is_made_in_64(monkeypatch: pytest.MonkeyPatch) -> None:
    (omega, _), eigh = factors_with_a_wide_spectrum(), torch.linalg.eigh

    def failing(matrix: Tensor) -> Any:
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("The algorithm failed to converge.")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    vectors, values = basis(omega)
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, omega, rtol=0, atol=1e-5)


def test_a_gradient_is_written_where_it_was_read() -> None:
    layer = nn.Conv2d(2, 3, 2)
    layer(torch.randn(1, 2, 3, 3)).sum().backward()
    matrix = torch.randn(3, 9)
    write_gradient(layer, matrix)
    torch.testing.assert_close(gradient_of(layer), matrix)


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "1.weight and 1 more"),
        (nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), "0.weight"),
    ],
)
def test_a_layer_that_has_no_factors_is_named(net: nn.Module, name: str) -> None:
    with pytest.raises(UserError, match=f"cannot factor the Fisher matrix of {name}.*--algo a2c"):
        factored_layers(net, net.parameters())


def test_a_layer_that_runs_twice_is_refused() -> None:
    layer = nn.Linear(2, 2)
    factors = KroneckerFactors({"only": layer}, {})
    with factors.recording(), pytest.raises(UserError, match="only: it runs twice"):
        layer(layer(torch.randn(1, 2)))


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Linear(3, 2, bias=False), nn.Conv2d(2, 3, 2)])
def test_the_numbers_of_a_layers_state_are_counted(layer: nn.Linear | nn.Conv2d) -> None:
    state: dict[str, Tensor] = {}
    KroneckerFactors({"only": layer}, state).decompose()
    assert state_numbers(layer) == sum(tensor.numel() for name, tensor in state.items() if name != "count")


def test_a_layer_whose_weights_are_used_without_running_it_is_found_and_one_that_is_not_used_is_not() -> None:
    net = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("runs", "bypassed", "idle")})
    factors = KroneckerFactors(factored_layers(net, net.parameters()), {})
    with factors.recording():
        h = net["runs"](torch.randn(2, 3))
    assert not factors.bypassed(h.sum())
    bypassed = net["bypassed"]
    assert isinstance(bypassed, nn.Linear)
    assert factors.bypassed(F.linear(h, bypassed.weight).sum()) == ["bypassed"]
