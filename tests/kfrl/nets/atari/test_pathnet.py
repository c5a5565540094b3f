import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agents.teachers.formats import Card, load_agent, save_agent
from kfrl.nets import build_net
from kfrl.nets.atari.pathnet import ModularNet, PathNet, module_gain, module_sum

CONVS = ((3, 8, 8), (2, 4, 2))
PATH = [[0, 2], [1], [0, 1, 3]]


@pytest.fixture
def net() -> PathNet:
    return PathNet({"pong": 3, "breakout": 4}, modules=4, active_modules=3, convs=CONVS, hidden=5)


def by_hand(net: PathNet, obs: Tensor, path: list[list[int]], task: str) -> tuple[Tensor, Tensor]:
    """Module by module, as the paper draws it."""
    h = obs / 255
    for layer, active in enumerate(path):
        if layer == len(path) - 1:
            h = h.flatten(1)
        outputs = [F.relu(net.module(layer, index)(h)) for index in active]
        h = torch.stack(outputs).sum(0)
    heads = net.get_submodule(f"heads.{task}")
    return heads.get_submodule("policy")(h), heads.get_submodule("value")(h).squeeze(1)


@pytest.mark.parametrize("task", ["pong", "breakout"])
def test_a_layer_is_the_sum_of_its_active_modules(net: PathNet, obs: Tensor, task: str) -> None:
    for found, expected in zip(net(obs, PATH, task), by_hand(net, obs, PATH, task), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_modules_off_the_path_are_not_read_and_get_no_gradient(net: PathNet, obs: Tensor) -> None:
    before = net(obs, PATH, "pong")[0]
    (before.square().sum() + net(obs, PATH, "pong")[1].sum()).backward()
    for layer in range(3):
        for index in range(4):
            weight = net.module(layer, index).weight
            assert (weight.grad is not None) == (index in PATH[layer]), (layer, index)
            if index not in PATH[layer]:
                with torch.no_grad():
                    weight.add_(10.0)
    assert all(p.grad is None for p in net.heads["breakout"].parameters())
    assert torch.equal(net(obs, PATH, "pong")[0], before)
    with torch.no_grad():
        net.module(2, 3).weight.add_(1.0)
    assert not torch.equal(net(obs, PATH, "pong")[0], before)


def test_freezing_keeps_a_path_and_re_initialises_the_rest(net: PathNet, obs: Tensor) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7.0)
    heads = {name: tensor.clone() for name, tensor in net.heads.state_dict().items()}
    net.freeze(PATH)
    assert net.frozen.tolist() == [[index in active for index in range(4)] for active in PATH]
    for layer in range(3):
        for index in range(4):
            module = net.module(layer, index)
            kept = bool((module.weight == 7.0).all() and (module.bias == 7.0).all())
            assert kept == (index in PATH[layer]), (layer, index)
            if not kept:
                rows = module.weight.detach().flatten(1)
                torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)) / (1.5 + 3 / math.pi), atol=1e-5, rtol=0)
                assert not module.bias.any()
    assert all(torch.equal(net.heads.state_dict()[name], tensor) for name, tensor in heads.items())
    free = {id(module) for module in net.free_modules()}
    assert free == {id(net.module(x, y)) for x in range(3) for y in range(4) if y not in PATH[x]}
    net.freeze([[1], [1], [2]])
    assert net.frozen.sum() == 6 + 2, "what was frozen stays so"


@pytest.mark.parametrize("active", [1, 2, 4])
def test_a_sum_of_modules_starts_with_the_mean_square_of_its_input(active: int) -> None:
    z = module_gain(active) * torch.randn(20_000, active * 3)
    assert module_sum(z, active).square().mean().item() == pytest.approx(1.0, rel=0.05)


def test_values_of_a_full_path_start_near_0(obs: Tensor) -> None:
    values = [PathNet({"pong": 6})(obs, [list(range(4))] * 4, "pong")[1].abs().max().item() for _ in range(3)]
    assert max(values) < 5.0


def test_a_path_becomes_a_net_with_its_modules_only(net: PathNet, obs: Tensor, tmp_path: Path) -> None:
    compact = net.along(PATH, "breakout")
    for found, expected in zip(compact(obs), net(obs, PATH, "breakout"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    on_path = sum(
        p.numel() for layer, active in enumerate(PATH) for i in active for p in net.module(layer, i).parameters()
    )
    heads = sum(p.numel() for p in net.heads["breakout"].parameters())
    assert sum(p.numel() for p in compact.parameters()) == on_path + heads
    assert build_net(compact.arch, 4).state_dict().keys() == compact.state_dict().keys()
    save_agent(tmp_path / "a.safetensors", compact, Card("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"), compact.arch))
    before = compact(obs)[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(load_agent(tmp_path / "a.safetensors").net(obs)[0], before)


def test_the_papers_shape() -> None:
    net = PathNet({"pong": 6})
    assert [len(layer) for layer in net.layers] == [10, 10, 10, 10]
    # 8 kernels of 8x8x4, 4x4x8 and 3x3x8 with their biases, and 256 units on 7 x 7 x 8.
    sizes = [sum(p.numel() for p in net.module(layer, 0).parameters()) for layer in range(4)]
    assert sizes == [2056, 1032, 584, 100_608]


@pytest.mark.parametrize("modules", [[1, 1], [1, 1, 0], [1, 1, 1, 1]])
def test_a_number_of_modules_for_each_layer_is_asked_for(modules: list[int]) -> None:
    with pytest.raises(ValueError, match="at least 1 module for each of 3 layers"):
        ModularNet(3, modules, CONVS, 5)


def test_modules_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel 1 to 10"):
        PathNet({"pong": 3}, convs=((3, 8, 8), (2, 11, 2)))
