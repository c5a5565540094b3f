import pytest
import torch
import torch.nn.functional as F

from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.nets.images.grown import GrownNet
from kfrl.nets.images.registry import make_net

SHAPE = (1, 8, 8)


def grown(name: str, **how: object) -> tuple[torch.nn.Module, GrownNet]:
    base = make_net(name, SHAPE, 4).eval()
    net = GrownNet(3, SHAPE, base.arch, **how).eval()
    net.take(base)
    return base, net


def features(base: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the head of `base` reads."""
    seen = []
    handle = base.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    base(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["mlp-9-6", "conv-4", "resnet-8", "mnist-mlp"])
def test_without_the_new_units_it_reads_the_old_features_normalised(name: str) -> None:
    base, net = grown(name, width=5, scale=10.0)
    images = torch.randn(3, *SHAPE)
    with torch.no_grad():
        net.norms[1].gamma.zero_()
    h = features(base, images)
    old = net.head.weight[:, : h.shape[1]]
    wanted = 10 * h / h.norm(dim=1, keepdim=True) @ old.T + net.head.bias
    torch.testing.assert_close(net(images), wanted)


def test_each_block_has_the_norm_gamma(monkeypatch: pytest.MonkeyPatch) -> None:
    _, net = grown("mlp-9-6", width=5, scale=7.0)
    seen = features(net, torch.randn(3, *SHAPE))
    for block in seen.split([6, 5], 1):
        torch.testing.assert_close(block.norm(dim=1), torch.full((3,), 7.0))


def test_new_units_stand_beside_the_top_layer_and_read_what_it_reads() -> None:
    base, net = grown("mlp-9-6", width=5, scale=None)
    images = torch.randn(3, *SHAPE)
    below = F.relu(base.fc1(images.flatten(1)))
    seen = features(net, images)
    torch.testing.assert_close(seen[:, :6], features(base, images))
    torch.testing.assert_close(seen[:, 6:], F.relu(net.body.fc2.new(below)))


def test_a_new_layer_reads_old_and_new_units() -> None:
    base, net = grown("conv-4", depth=7, scale=None)
    images = torch.randn(3, *SHAPE)
    wanted = net.head(F.relu(net.deeper(features(base, images))))
    torch.testing.assert_close(net(images), wanted)
    assert grown("conv-4", width=2, depth=7)[1].deeper.in_features == base.head.in_features + 2


def test_a_grown_net_is_built_again_and_may_grow_again() -> None:
    _, net = grown("mlp-9-6", width=5, depth=7)
    twin = build_net(net.arch, 3)
    twin.load_state_dict(net.state_dict())
    images = torch.randn(2, *SHAPE)
    assert torch.equal(twin.eval()(images), net(images))
    again = GrownNet(2, SHAPE, net.arch, width=3)
    again.take(net)
    assert torch.equal(again.body.deeper.old.weight, net.deeper.weight)
    assert len(again.old_parameters()) == len(list(net.parameters())) - 2


def test_nothing_new_is_refused() -> None:
    with pytest.raises(UserError, match="a net grows by units, got 0"):
        build_net({"family": "grown", "input_shape": list(SHAPE), "base": make_net("mlp-6", SHAPE, 2).arch}, 2)
