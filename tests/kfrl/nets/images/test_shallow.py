import pytest
import torch

from kfrl.nets.images.registry import make_net


@pytest.mark.parametrize(
    ("name", "millions", "thousand_units"),
    # Table 2 of the paper: about 70 M and 190 k, 54 M and 110 k. Units are those of maps before and after pooling too.
    [("128c-p-1200l-30k", 75.6, 195), ("64c-p-1200l-30k", 56.0, 113)],
)
def test_the_papers_nets(name: str, millions: float, thousand_units: float) -> None:
    with torch.device("meta"):
        net = make_net(name, (3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    maps = net.arch["maps"]
    units = maps * (32 * 32 + 16 * 16) + net.arch["linear"] + net.arch["hidden"]
    assert units / 1000 == pytest.approx(thousand_units, abs=1)


def test_the_bottleneck_is_linear() -> None:
    net = make_net("3l-20", (1, 4, 4), 2)
    images = torch.randn(5, 1, 4, 4)
    product = net.fc.weight @ net.linear.weight
    wanted = net.head(torch.relu(images.flatten(1) @ product.T + net.fc.bias))
    torch.testing.assert_close(net(images), wanted)
    assert torch.linalg.matrix_rank(product) == 3


def test_sizes_by_name() -> None:
    small, large = make_net("4c-p-5l-60-dropout", (1, 8, 8), 2).arch, make_net("5l-6k", (1, 8, 8), 2).arch
    assert (small["maps"], small["linear"], small["hidden"], small["dropout"]) == (4, 5, 60, 0.5)
    assert (large["maps"], large["linear"], large["hidden"], large["dropout"]) == (0, 5, 6000, 0.0)
