import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.teachers.formats import Card, load_agent, save_agent
from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.atari.progressive import LateralLayer, ProgressiveNet

LAYERS = ("conv2", "fc", "policy", "value")


@pytest.fixture
def columns() -> dict[str, AtariNet]:
    """One of the student's own map sizes with other widths, one deeper and of other sizes."""
    same = AtariNet(3, ((5, 8, 8), (7, 4, 2)), 9)
    deep = AtariNet(4, ((6, 8, 4), (4, 4, 2), (3, 3, 1)), 11, head="q")
    return {"same": same, "deep": deep}


@pytest.fixture
def net(columns: dict[str, AtariNet]) -> ProgressiveNet:
    return ProgressiveNet(2, columns, ((4, 8, 8), (6, 4, 2)), 8, initial_scalar=0.5)


def test_a_layer_by_hand() -> None:
    own = nn.Linear(2, 1)
    layer = LateralLayer(own, (2,), [(2,), (1,)], 0.5, 1.0)
    with torch.no_grad():
        own.weight.copy_(torch.tensor([[1.0, 2.0]]))
        own.bias.fill_(0.25)
        layer.lateral.weight.copy_(torch.tensor([[3.0, 5.0]]))
        layer.adapters[0].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
        layer.adapters[1].weight.copy_(torch.tensor([[4.0], [-7.0]]))
        layer.scalars.copy_(torch.tensor([0.5, 0.25]))
    layer.features = (torch.tensor([[6.0, 2.0]]), torch.tensor([[4.0]]))
    # V alpha h: (0.5 * 6 - 0.5 * 2 + 0.25 * 4 * 4, 0.5 * 12 - 0.25 * 7 * 4) = (6, -1); U relu of it: 18.
    assert layer(torch.tensor([[10.0, 20.0]])).tolist() == [[10.0 + 40.0 + 0.25 + 18.0]]


def test_u_is_like_the_layers_own_weight_and_has_no_bias_and_v_reduces_to_the_layer_before(net: ProgressiveNet) -> None:
    state = net.state_dict()
    for layer in LAYERS:
        assert state[f"{layer}.lateral.weight"].shape == state[f"{layer}.own.weight"].shape
        assert f"{layer}.lateral.bias" not in state
    # Rows: maps or units of the student's layer before; columns: those of each frozen column's.
    assert {
        layer: [tuple(state[f"{layer}.adapters.{j}.weight"].flatten(1).shape) for j in (0, 1)] for layer in LAYERS
    } == {
        "conv2": [(4, 5), (4, 6)],
        "fc": [(6, 7), (6, 3)],
        "policy": [(8, 9), (8, 11)],
        "value": [(8, 9), (8, 11)],
    }
    assert not any(name.startswith("conv1.") for name in state if "own" in name or "lateral" in name)


def test_forward_is_the_papers_equation(net: ProgressiveNet, columns: dict[str, AtariNet], obs: Tensor) -> None:
    with torch.no_grad():
        for layer in LAYERS:
            net.get_parameter(f"{layer}.scalars").copy_(torch.tensor([0.7, 1.3]))
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    theirs = [{n: t.contiguous() for n, t in column.state_dict().items()} for column in columns.values()]
    x = obs.to(torch.float32) / 255

    def conv(weights: dict[str, Tensor], layer: str, h: Tensor, stride: int) -> Tensor:
        return F.conv2d(h, weights[f"{layer}.weight"], weights[f"{layer}.bias"], stride=stride)

    same1 = conv(theirs[0], "conv1", x, 8).relu()
    same2 = conv(theirs[0], "conv2", same1, 2).relu()
    deep1 = conv(theirs[1], "conv1", x, 4).relu()
    deep3 = conv(theirs[1], "conv3", conv(theirs[1], "conv2", deep1, 2).relu(), 1).relu()
    units = [
        F.linear(h.flatten(1), weights["fc.weight"], weights["fc.bias"]).relu()
        for h, weights in ((same2, theirs[0]), (deep3, theirs[1]))
    ]

    def laterals(layer: str, *anterior: Tensor) -> Tensor:
        """relu(V alpha h) with V, and alpha h, put together from their blocks."""
        v = torch.cat([state[f"{layer}.adapters.{j}.weight"].flatten(1) for j in (0, 1)], 1)
        scaled = torch.cat([0.7 * anterior[0], 1.3 * anterior[1]], 1)
        return torch.einsum("ij,bj...->bi...", v, scaled).relu()

    def sized(h: Tensor, size: int) -> Tensor:
        return F.interpolate(h, (size, size), mode="bilinear", align_corners=False)

    h1 = conv(state, "conv1", x, 8).relu()
    z2 = conv(state, "conv2.own", h1, 2) + F.conv2d(
        laterals("conv2", same1, sized(deep1, 10)), state["conv2.lateral.weight"], stride=2
    )
    h2 = z2.relu()
    z3 = F.linear(h2.flatten(1), state["fc.own.weight"], state["fc.own.bias"]) + F.linear(
        laterals("fc", same2, sized(deep3, 4)).flatten(1), state["fc.lateral.weight"]
    )
    h3 = z3.relu()
    heads = [
        F.linear(h3, state[f"{head}.own.weight"], state[f"{head}.own.bias"])
        + F.linear(laterals(head, *units), state[f"{head}.lateral.weight"])
        for head in ("policy", "value")
    ]
    logits, values = net(obs)
    torch.testing.assert_close(logits, heads[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, heads[1].squeeze(1), rtol=1e-4, atol=1e-5)


def test_every_layer_of_every_column_is_read(net: ProgressiveNet, obs: Tensor) -> None:
    features = tuple(h.clone().requires_grad_() for h in net.features(obs))
    assert len(features) == 2 * len(net.hidden_layers)
    with torch.no_grad():
        # Adapters that no rectifier can shut.
        for layer, j in itertools.product(LAYERS, (0, 1)):
            net.get_parameter(f"{layer}.adapters.{j}.weight").abs_()
    logits, values = net(obs, features)
    for grad in torch.autograd.grad(logits.sum() + values.sum(), features):
        assert grad.abs().max() > 0
    # The value alone reads what feeds it as well.
    last = features[len(net.hidden_layers) - 1 :: len(net.hidden_layers)]
    for grad in torch.autograd.grad(net(obs, features)[1].sum(), last):
        assert grad.abs().max() > 0


def test_features_computed_beforehand_give_the_same(net: ProgressiveNet, obs: Tensor) -> None:
    for cached, computed in zip(net(obs, net.features(obs)), net(obs), strict=True):
        assert torch.equal(cached, computed)


def test_columns_are_frozen_and_their_nets_are_not_copied(
    net: ProgressiveNet, columns: dict[str, AtariNet], obs: Tensor
) -> None:
    net.train()
    for ours, theirs in zip(net.columns, columns.values(), strict=True):
        assert ours is theirs
        assert not ours.training
        assert not any(parameter.requires_grad for parameter in ours.parameters())
    logits, values = net(obs)
    (logits.sum() + values.sum()).backward()
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in net.named_parameters() if not name.startswith("columns.")}


def test_its_file_holds_all_that_plays(net: ProgressiveNet, obs: Tensor, tmp_path: Path) -> None:
    save_agent(tmp_path / "p.safetensors", net, Card("pong", ("NOOP", "FIRE"), net.arch))
    expected = [tensor.clone() for tensor in net(obs)]
    with torch.no_grad():
        for parameter in net.columns.parameters():
            parameter.zero_()
    loaded = load_agent(tmp_path / "p.safetensors").net
    assert all(torch.equal(a, b) for a, b in zip(loaded(obs), expected, strict=True))
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in net.parameters())


def test_it_may_be_a_column_itself(net: ProgressiveNet, obs: Tensor) -> None:
    tower = ProgressiveNet(5, {"net": net}, ((4, 8, 8),), 8)
    assert [tuple(h.shape[1:]) for h in tower.features(obs)] == [(6, 4, 4), (8,)]
    rebuilt = build_net(tower.arch, 5)
    rebuilt.load_state_dict(tower.state_dict())
    assert torch.equal(rebuilt(obs)[0], tower(obs)[0])
    # What it reads of the net is the whole pre-activation, laterals included.
    with torch.no_grad():
        net.get_parameter("fc.scalars").mul_(50.0)
    assert not torch.equal(rebuilt(obs)[0], tower(obs)[0])


def test_sizes_of_the_papers_net_with_two_columns() -> None:
    net = ProgressiveNet(18, {"a": AtariNet(18), "b": AtariNet(18)})
    own = 681_027
    u = own - (16 * 4 * 64 + 16) - (32 + 256 + 18 + 1)
    v = 2 * (16 * 16 + 32 * 32 + 2 * 256 * 256)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == own + u + v + 4 * 2
    assert sum(p.numel() for p in net.parameters()) == 3 * own + u + v + 4 * 2 == 2_984_401


@pytest.mark.parametrize(
    "arch",
    [
        {"family": "progressive"},
        {"family": "progressive", "columns": [{}]},
        {"family": "progressive", "columns": "ab"},
        {"family": "progressive", "columns": [{"name": "a", "outputs": 3, "arch": {"family": "atari", "convs": 3}}]},
        {"family": "progressive", "columns": []},
    ],
)
def test_a_broken_description_is_refused(arch: dict[str, object]) -> None:
    with pytest.raises(UserError):
        build_net(arch, 3)
