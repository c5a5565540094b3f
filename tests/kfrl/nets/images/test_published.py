"""The nets' sizes beside the numbers that their papers and repositories print."""

import pytest
import torch

from kfrl.nets.hooks import layer_shapes
from kfrl.nets.images.registry import make_net

MILLIONS = {
    # He et al. 2016, table 6.
    "resnet-20": 0.27,
    "resnet-32": 0.46,
    "resnet-44": 0.66,
    "resnet-56": 0.85,
    "resnet-110": 1.7,
    "resnet-1202": 19.4,
    # Zagoruyko and Komodakis 2016, table 4; 28-2: Oliver et al. 2018; 16-2: Zagoruyko and Komodakis 2017.
    "wrn-40-2": 2.2,
    "wrn-40-4": 8.9,
    "wrn-28-10": 36.5,
    "wrn-28-2": 1.5,
    "wrn-16-2": 0.7,
    # Huang et al. 2017, table 2.
    "densenet-40-12": 1.0,
    "densenet-100-12": 7.0,
    "densenet-100-24": 27.2,
    "densenet-bc-100-12": 0.8,
    "densenet-bc-250-24": 15.3,
    "densenet-bc-190-40": 25.6,
}


def size(name: str, input_shape: tuple[int, int, int], classes: int = 10) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make_net(name, input_shape, classes).parameters())


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_published_parameter_counts(name: str, millions: float) -> None:
    # As exactly as the source rounds.
    digits = len(str(millions).partition(".")[2])
    assert round(size(name, (3, 32, 32)) / 1e6, digits) == millions


def test_plain_nets_have_a_matrix_and_a_bias_per_layer() -> None:
    assert size("mlp-1200-1200-dropout", (1, 28, 28)) == 785 * 1200 + 1201 * 1200 + 1201 * 10
    assert size("mlp-800-800", (1, 28, 28)) == 785 * 800 + 801 * 800 + 801 * 10
    assert size("mnist-mlp", (1, 28, 28)) == 785 * 256 + 257 * 256 + 257 * 10
    # pytorch-playground's batch norm has no parameters; its channels are n, n, 2n, 2n, 4n, 4n, 8n with n = 128.
    assert (
        size("cifar-conv-128", (3, 32, 32))
        == 128
        * ((27 + 1) + (9 * 128 + 1) + 2 * (9 * 128 + 1) + 2 * (9 * 256 + 1) + 4 * (9 * 256 + 1) + 4 * (9 * 512 + 1))
        + 1024 * (9 * 512 + 1)
        + 1025 * 10
    )
    # n, 2n, 4n, 4n, 8n, 8n with n = 32.
    assert (
        size("stl-conv-32", (3, 96, 96))
        == 32 * (28 + 2 * (9 * 32 + 1) + 4 * (9 * 64 + 1) + 4 * (9 * 128 + 1) + 8 * (9 * 128 + 1) + 8 * (9 * 256 + 1))
        + 257 * 10
    )
    # Four gates, and PyTorch's two biases each.
    assert size("lstm-128", (1, 28, 28)) == 4 * 128 * (28 + 128 + 2) + 129 * 10


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)])
def test_residual_nets_for_large_images_have_torchvisions_counts(depth: int, count: int) -> None:
    assert size(f"imagenet-resnet-{depth}", (3, 224, 224), 1000) == count


def test_their_maps_shrink_to_a_thirty_second_of_the_image() -> None:
    net = make_net("imagenet-resnet-18", (3, 64, 64), 5).eval()
    shapes = layer_shapes(net, net.hidden_layers, torch.zeros(1, 3, 64, 64))
    assert list(shapes.values()) == [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
