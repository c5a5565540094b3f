import torch
from torch import nn

from kfrl.nets.features import with_features


def test_features_are_what_the_layers_said_and_no_hook_is_left() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    output, features = with_features(net, ("0", "2", "0"), x)
    assert list(features) == ["0", "2"]
    # Before the ReLU that works in place.
    torch.testing.assert_close(features["0"], x @ net[0].weight.T + net[0].bias)
    assert torch.equal(features["2"], output)
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_are_taken_off_a_net_that_fails() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    try:
        with_features(net, ("0",), torch.randn(5, 2))
    except RuntimeError:
        pass
    assert not net[0]._forward_hooks
