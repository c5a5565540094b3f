"""Fully connected layers by another library than PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kfrl.nets import linear as module
from kfrl.nets.linear import Linear, linear

LARGE = [(32, 2592, 256), (2, 3136, 512), (160, 256, 256)]
HERE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
SMALL = [(1, 2592, 256), (32, 256, 18), (32, 256, 256), (0, 2592, 256)]


def tensors(batch: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, inputs), (outputs, inputs), (outputs,), (batch, outputs)]
    x, weight, bias, grad = (torch.randn(size, generator=generator) for size in sizes)
    return x, weight, bias, grad


def close(got: Tensor | None, want: Tensor) -> None:
    assert got is not None
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-3)


@pytest.fixture(autouse=True)
def wherever_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other library's kernels on this processor too, if this PyTorch has them."""
    monkeypatch.setattr(module, "_AVAILABLE", HERE)


@pytest.mark.parametrize("sizes", LARGE + SMALL, ids=str)
def test_result_and_gradients_are_those_of_the_formula_in_64_bits(sizes: tuple[int, int, int]) -> None:
    x, weight, bias, grad = tensors(*sizes)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = linear(leaves[0], leaves[1], leaves[2])
    y.backward(grad)
    a, w, b, g = (t.numpy().astype("float64") for t in (x, weight, bias, grad))
    close(y.detach(), torch.from_numpy(a @ w.T + b))
    for leaf, want in zip(leaves, (g @ w, g.T @ a, g.sum(0)), strict=True):
        close(leaf.grad, torch.from_numpy(want))


def test_tensors_that_lie_across_memory() -> None:
    x, weight, _, _ = tensors(32, 2592, 256)
    across_x, across_weight = x.t().contiguous().t().requires_grad_(), weight.t().contiguous().t()
    y = linear(across_x, across_weight)
    # The gradient of a sum has no memory of its own: one number stands for all.
    y.sum().backward()
    close(y.detach(), x.double() @ weight.double().t())
    close(across_x.grad, weight.double().sum(0).expand(32, -1))


def test_a_frozen_layer_has_no_gradient_and_passes_one_on() -> None:
    x, *_ = tensors(32, 2592, 256)
    layer = Linear(2592, 256).requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    close(x.grad, layer.weight.double().sum(0).expand(32, -1))


def test_its_parameters_are_those_of_pytorchs_own_layer() -> None:
    plain, layer = nn.Linear(2592, 256), Linear(2592, 256)
    layer.load_state_dict(plain.state_dict())
    x, *_ = tensors(32, 2592, 256)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)


def test_gradients_have_gradients() -> None:
    x, weight, _, _ = tensors(32, 2592, 256)
    x.requires_grad_()
    y = linear(x, weight)
    (first,) = torch.autograd.grad(y.square().sum() / 2, [x], create_graph=True)
    # Of 1/2 |W x|^2 it is W^T W x, whose sum has the gradient W^T W 1 in x.
    (second,) = torch.autograd.grad(first.sum(), [x])
    want = weight.double().t() @ weight.double().sum(1)
    torch.testing.assert_close(second, want.float().expand(32, -1), rtol=1e-3, atol=1e-1)


@pytest.mark.skipif(not HERE, reason="this PyTorch has no oneDNN")
def test_only_large_products_of_32_bit_floats_on_a_cpu_take_the_longer_way(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    product = module._product

    def counted(x: Tensor, *others: Tensor) -> Tensor:
        taken.append(len(x))
        return product(x, *others)

    monkeypatch.setattr(module, "_product", counted)
    for sizes in SMALL:
        linear(*tensors(*sizes)[:3])
    x, weight, bias, _ = tensors(32, 2592, 256)
    linear(x.double(), weight.double(), bias.double())
    linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    linear(x[0], weight, bias)
    assert not taken
    linear(x, weight, bias)
    with torch.no_grad():
        linear(x, weight, bias)
    assert taken == [32, 32]
