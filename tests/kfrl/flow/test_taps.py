from collections.abc import Callable

import pytest
import torch
from torch import nn

from kfrl.flow.taps import layer_outputs


def test_outputs_are_the_layers_own_whatever_follows_in_place() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    seen = layer_outputs(net, ["0", "2"], x)
    assert list(seen) == ["0", "2"]
    torch.testing.assert_close(seen["0"], x @ net[0].weight.T + net[0].bias)
    assert (seen["0"] < 0).any()
    torch.testing.assert_close(seen["2"], net(x))


def test_no_hook_is_left_even_after_a_failure(mlp: Callable[..., nn.Sequential]) -> None:
    net = mlp(3, 4, 2)
    layer_outputs(net, ["0"], torch.zeros(1, 3))
    with pytest.raises(RuntimeError):
        layer_outputs(net, ["0", "2"], torch.zeros(1, 9))
    assert not any(module._forward_hooks for module in net.modules())
