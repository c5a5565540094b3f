import subprocess
import sys

import pytest
import torch
from torch import nn

from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.nets.images.registry import NAMES, make_net


def test_a_name_with_other_numbers_is_another_size() -> None:
    net = make_net("mlp-7-5", (1, 3, 3), 4)
    assert [tuple(p.shape) for p in net.parameters() if p.ndim == 2] == [(7, 9), (5, 7), (4, 5)]
    assert net.arch["dropout"] == 0.0
    assert make_net("mlp-7-dropout", (1, 3, 3), 4).arch["dropout"] == 0.5


@pytest.mark.parametrize(
    ("name", "rate", "places"),
    [
        ("mlp-7-7-dropout-0.3", 0.3, 1),
        ("wrn-16-2-dropout", 0.3, 6),
        ("wrn-16-2-dropout-0.4", 0.4, 6),
        # Every convolution but the first: three blocks of 12 layers, and two transitions.
        ("densenet-40-12-dropout", 0.2, 38),
        ("densenet-bc-40-12-dropout-.1", 0.1, 38),
    ],
)
def test_a_name_may_have_dropout_at_the_papers_rate_or_another(name: str, rate: float, places: int) -> None:
    net = make_net(name, (3, 8, 8), 4)
    plain = make_net(name.partition("-dropout")[0], (3, 8, 8), 4)
    assert net.arch["dropout"] == rate and plain.arch["dropout"] == 0.0
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)].count(rate) == places
    plain.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net.eval()(x), plain.eval()(x))
    assert not torch.equal(net.train()(x), net(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_arch_block_of_a_net_builds_it_again(name: str) -> None:
    with torch.device("meta"):
        net = make_net(name, (3, 96, 96), 7)
        twin = build_net(net.arch, 7)
    assert {n: t.shape for n, t in twin.state_dict().items()} == {n: t.shape for n, t in net.state_dict().items()}
    assert net.head_layers == ("head",) and net.head.out_features == 7


@pytest.mark.parametrize(
    ("name", "near"), [("mlp-800-800x", "mlp-800-800"), ("mnist_mlp", "mnist-mlp"), ("wrn-16-2-dropout-2", "wrn-16-2")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"Unknown net '{name}'. Did you mean '{near}'\?"):
        make_net(name, (1, 28, 28), 10)


def test_nets_are_listed_without_loading_torch() -> None:
    code = "import sys, kfrl.nets.images.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
