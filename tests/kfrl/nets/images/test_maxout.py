import pytest
import torch
import torch.nn.functional as F

from kfrl.errors import UserError
from kfrl.nets.hooks import activation_of, layer_shapes
from kfrl.nets.images.grown import GrownNet
from kfrl.nets.images.maxout import MaxoutNet
from kfrl.nets.images.registry import make_net


def parameters(name: str, shape: tuple[int, int, int]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make_net(name, shape, 10).parameters())


def weights(inputs: int, kernel: int, units: int, pieces: int) -> int:
    """Weights and biases of a layer of maxout units."""
    return (inputs * kernel**2 + 1) * units * pieces


def test_a_unit_is_the_maximum_of_its_pieces() -> None:
    net = MaxoutNet(2, (1, 7, 7), [[2, 3, 3, 1, 2, 2]], [[4, 5]])
    images, (conv, fc) = torch.randn(3, 1, 7, 7), (net.get_submodule(f"{name}.filters") for name in ("layer1.0", "fc1"))
    z = F.conv2d(images, conv.weight, conv.bias, padding=1)
    maps = torch.stack(
        [torch.stack([z[:, 3 * unit + piece] for piece in range(3)]).max(0).values for unit in (0, 1)], 1
    )
    pooled = torch.full((3, 2, 4, 4), -torch.inf)
    for row in range(7):
        for column in range(7):
            at = pooled[:, :, row // 2, column // 2]
            pooled[:, :, row // 2, column // 2] = torch.maximum(at, maps[:, :, row, column])
    z = F.linear(pooled.flatten(1), fc.weight, fc.bias)
    h = torch.stack([torch.stack([z[:, 5 * unit + piece] for piece in range(5)]).max(0).values for unit in range(4)], 1)
    assert (maps < 0).any()
    torch.testing.assert_close(net(images), net.head(h))


@pytest.mark.parametrize(("name", "blocks"), [("fitnet-1", [[16] * 3, [32] * 3, [48, 48, 64]]), ("fitnet-4", [])])
def test_the_fitnets_of_cifar(name: str, blocks: list[list[int]]) -> None:
    blocks = blocks or [[32, 32, 32, 48, 48], [80] * 6, [128] * 6]
    widths = [width for block in blocks for width in block]
    counted = sum(weights(inputs, 3, units, 2) for inputs, units in zip([3, *widths], widths, strict=False))
    counted += weights(widths[-1], 1, 500, 5) + 501 * 10
    assert parameters(name, (3, 32, 32)) == counted == {"fitnet-1": 348_694, "fitnet-4": 2_742_102}[name]
    net = make_net(name, (3, 32, 32), 10)
    shapes = list(layer_shapes(net, net.hidden_layers, torch.zeros(1, 3, 32, 32)).values())
    sides = [32 // 2**index for index, block in enumerate(blocks) for _ in block]
    sides = [side // 2 if following < side else side for side, following in zip(sides, [*sides[1:], 8], strict=True)]
    assert shapes == [*zip(widths, [*sides[:-1], 1], [*sides[:-1], 1], strict=True), (500,)]


def test_the_fitnet_of_mnist() -> None:
    layers = [(1, 5, 16, 2), (16, 3, 16, 2), (16, 5, 16, 2), (16, 3, 16, 2), (16, 3, 12, 4), (12, 3, 12, 4)]
    counted = sum(weights(*layer) for layer in layers) + (12 * 3 * 3 + 1) * 10
    assert parameters("fitnet-mnist", (1, 28, 28)) == counted == 36_226
    net = make_net("fitnet-mnist", (1, 28, 28), 10)
    shapes = layer_shapes(net, net.hidden_layers, torch.zeros(1, 1, 28, 28)).values()
    assert list(shapes) == [(16, 24, 24), (16, 10, 10), (16, 12, 12), (16, 4, 4), (12, 8, 8), (12, 3, 3)]


def test_the_teacher_pools_windows_over_the_border() -> None:
    counted = weights(3, 8, 96, 2) + weights(96, 8, 192, 2) + weights(192, 5, 192, 2)
    counted += weights(192, 5, 500, 5) + 501 * 10
    assert parameters("maxout-cifar", (3, 32, 32)) == counted == 16_247_830
    net = make_net("maxout-cifar", (3, 32, 32), 10)
    shapes = layer_shapes(net, net.hidden_layers, torch.zeros(1, 3, 32, 32)).values()
    assert list(shapes) == [(96, 16, 16), (192, 7, 7), (192, 5, 5), (500,)]


@pytest.mark.parametrize("name", ["fitnet-1", "fitnet-mnist", "maxout-cifar"])
@pytest.mark.parametrize("side", range(20, 34))
def test_the_sizes_of_maps_are_those_of_torch(name: str, side: int) -> None:
    with torch.device("meta"):
        assert make_net(name, (1, side, side + 3), 4)(torch.zeros(2, 1, side, side + 3)).shape == (2, 4)


def test_the_initial_weights_keep_the_size_of_activations() -> None:
    net = make_net("fitnet-4", (3, 32, 32), 10)
    seen: list[float] = []
    for name in net.hidden_layers:
        net.get_submodule(name).register_forward_hook(lambda *call: seen.append(float(call[2].square().mean())))
    with torch.no_grad():
        net(torch.randn(8, 3, 32, 32))
    assert len(seen) == 18 and 0.3 < min(seen) and max(seen) < 100


def test_only_other_layers_have_a_relu() -> None:
    z = torch.tensor([[-1.0, 2.0]])
    net = make_net("fitnet-mnist", (1, 28, 28), 10)
    assert activation_of(net, "layer1", z) is z
    assert activation_of(make_net("conv-2", (1, 8, 8), 2), "layer1", z).tolist() == [[0.0, 2.0]]
    grown = GrownNet(2, (1, 28, 28), net.arch, depth=3)
    assert activation_of(grown, "body.layer1", z) is z
    assert activation_of(grown, "deeper", z).tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("fitnet-mnist", (1, 6, 6), "no net 'fitnet-mnist' for images of 1 x 6 x 6.*too small for convolution 2"),
        ("maxout-cifar", (3, 1, 1), "too small for convolution 1 and its pooling"),
        ("fitnet-2", (3, 32, 32), "Unknown net 'fitnet-2'. Did you mean 'fitnet-4'"),
    ],
)
def test_images_that_are_too_small_and_other_fitnets_are_refused(
    name: str, shape: tuple[int, int, int], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        make_net(name, shape, 10)


@pytest.mark.parametrize(
    ("convs", "hidden"),
    [([], []), ([[4, 0, 3, 1, 1, 1]], []), ([[4, 2, 3, 1, 1, 1]], [[0, 5]]), ([[4, 2, 3, 1, 1, 1]], [[5, 0]])],
)
def test_layers_without_units_are_refused(convs: list[list[int]], hidden: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one unit and piece"):
        MaxoutNet(2, (1, 8, 8), convs, hidden)
