import pytest
import torch
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.nets.hooks import (
    changed_activations,
    features_of,
    layer_shapes,
    overwrites,
    parameters_before,
    with_features,
)
from kfrl.nets.images.registry import make_net


def test_features_are_what_the_layers_said_and_no_hook_is_left() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    output, features = with_features(net, ("0", "2", "0"), x)
    assert list(features) == ["0", "2"]
    # Before the ReLU that works in place.
    torch.testing.assert_close(features["0"], x @ net[0].weight.T + net[0].bias)
    assert torch.equal(features["2"], output)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_pass_for_features_ends_with_the_last_layer_that_is_read() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2), nn.ReLU(inplace=True), nn.Linear(2, 2))
    x = torch.randn(5, 3)
    spoken: list[nn.Module] = []
    for module in net:
        module.register_forward_hook(lambda module, inputs, output: spoken.append(module))
    _, features = with_features(net, ("2", "0"), x)
    spoken.clear()
    alone = features_of(net, ("2", "0", "2"), x)
    assert spoken == list(net[:3])
    assert alone.keys() == features.keys()
    assert all(torch.equal(alone[layer], z) for layer, z in features.items())
    assert [len(module._forward_hooks) for module in net] == [1] * 5


class Asking(nn.Module):
    """A net that itself asks another for its features, as a progressive net does."""

    def __init__(self) -> None:
        super().__init__()
        self.column = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        self.own = nn.Linear(4, 2)
        self.spare = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(features_of(self.column, ("1",), x)["1"])


def test_a_net_that_asks_another_for_features_can_be_asked_itself() -> None:
    net, x = Asking(), torch.randn(5, 3)
    assert torch.equal(features_of(net, ("column.0",), x)["column.0"], net.column[0](x))
    assert torch.equal(features_of(net, ("own",), x)["own"], net(x))


@pytest.mark.parametrize("layer", ["spare", "column.2"])
def test_a_layer_that_is_not_used_is_named(layer: str) -> None:
    for ask in (features_of, with_features):
        with pytest.raises(UserError, match=f"Layer {layer} gives no output"):
            ask(Asking(), ("own", layer), torch.randn(5, 3))


def test_a_layer_that_is_used_twice_counts_once() -> None:
    layer = nn.Linear(3, 3)
    net, x = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(5, 3)
    for features in (features_of(net, ("0", "1"), x), with_features(net, ("0", "1"), x)[1]):
        assert torch.equal(features["0"], layer(x))


def test_no_layers_need_no_pass() -> None:
    assert features_of(nn.Linear(3, 4), (), torch.randn(5, 7)) == {}


def test_a_net_overwrites_what_a_layer_said_by_an_activation_in_place() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2), nn.ReLU())
    # The bias is positive, so that the ReLU changes none of the numbers.
    nn.init.ones_(net[0].bias)
    x = torch.zeros(5, 3)
    assert overwrites(net, ("0", "2"), x)
    assert not overwrites(net, ("2",), x)
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_are_taken_off_a_net_that_fails() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    try:
        with_features(net, ("0",), torch.randn(5, 2))
    except RuntimeError:
        pass
    assert not net[0]._forward_hooks


def test_shapes_leave_the_net_as_it_was() -> None:
    net = make_net("resnet-8", (1, 8, 8), 3)
    net.stage2.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert layer_shapes(net, ("stem", "stage3"), torch.randn(2, 1, 8, 8)) == {"stem": (16, 8, 8), "stage3": (64, 2, 2)}
    assert net.training and not net.stage2.training and net.stage2[0].training is False
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_parameters_before_a_layer_are_its_own_and_those_that_feed_it() -> None:
    net = make_net("resnet-8", (1, 8, 8), 3)
    wanted = [*net.stem.parameters(), *net.stage1.parameters()]
    assert list(map(id, parameters_before(net, ["stage1"], torch.zeros(2, 1, 8, 8)))) == list(map(id, wanted))
    assert len(parameters_before(net, ["stem", "head"], torch.zeros(2, 1, 8, 8))) == len(list(net.parameters()))


def test_a_changed_activation_is_what_the_next_layer_reads() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    clean = net(x)
    seen: dict[str, Tensor] = {}

    def change(layer: str, h: Tensor) -> Tensor:
        seen[layer] = h
        # Negative, so that a change before the ReLU would be lost.
        return h - 7.0 if layer == "2" else h

    with changed_activations(net, ("0", "2"), change):
        changed = net(x)
    h1 = net[0](x).relu()
    h2 = net[2](h1).relu()
    torch.testing.assert_close(seen, {"0": h1, "2": h2})
    torch.testing.assert_close(changed, net[4](h2 - 7.0))
    assert torch.equal(net(x), clean)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_without_a_relu_has_no_activation_to_change() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(UserError, match="layer 0 goes into no ReLU"), changed_activations(net, ("0",), lambda _, h: h):
        net(torch.randn(5, 3))
