import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kfrl.errors import UserError
from kfrl.nets.images.mlp import MLP
from kfrl.nets.images.registry import make_net
from kfrl.nets.images.widen import embed, grow

PAIRS = [
    ("mlp-5-4", "mlp-9-4"),
    ("mlp-5-4-dropout", "mlp-9-11-dropout"),
    ("conv-3-4", "conv-5-7"),
    ("cifar-conv-2", "cifar-conv-3"),
    ("lstm-5", "lstm-8"),
    ("lstm-5-4", "lstm-8-9"),
]


def trained(name: str, classes: int = 3, channels: int = 2) -> nn.Module:
    net = make_net(name, (channels, 24, 24), classes).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_zero_extension_keeps_the_function(small: str, large: str) -> None:
    old, new = trained(small), make_net(large, (2, 24, 24), 3).eval()
    x = torch.randn(6, 2, 24, 24)
    assert not torch.allclose(new(x), old(x))
    grow(old, new, "zero")
    torch.testing.assert_close(new(x), old(x), rtol=1e-5, atol=1e-6)


def test_new_classes_start_at_zero_and_old_ones_stay() -> None:
    old, new = trained("conv-3-4"), make_net("conv-5-7", (2, 24, 24), 5)
    grow(old, new, "zero")
    x = torch.randn(6, 2, 24, 24)
    torch.testing.assert_close(new(x), F.pad(old(x), (0, 2)), rtol=1e-5, atol=1e-6)


def test_larger_images_keep_the_function_of_a_padded_one() -> None:
    old, new = MLP(3, (2, 4, 4), (5,)), MLP(3, (3, 6, 7), (6,))
    grow(old, new, "zero")
    x = torch.randn(8, 2, 4, 4)
    padded = torch.randn(8, 3, 6, 7)
    padded[:, :2, :4, :4] = x
    torch.testing.assert_close(new(padded), old(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_a_net_of_gray_images_reads_the_gray_of_rgb_ones(small: str, large: str) -> None:
    old, new = trained(small, channels=1), make_net(large, (3, 24, 24), 3).eval()
    grow(old, new, "zero")
    x = torch.randn(6, 3, 24, 24)
    gray = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    torch.testing.assert_close(new(x), old(gray), rtol=1e-4, atol=1e-5)


def test_uniform_extension_by_hand() -> None:
    old, new = MLP(1, (1, 1, 2), (2,)), MLP(2, (1, 1, 2), (3,))
    grow(old, new, "uniform", theta=0.5)
    assert torch.equal(new.fc1.weight[:2], old.fc1.weight) and torch.equal(new.fc1.bias[:2], old.fc1.bias)
    assert torch.equal(new.head.weight[:1, :2], old.head.weight)
    extended = torch.cat([new.fc1.weight[2], new.fc1.bias[2:], new.head.weight[0, 2:], new.head.weight[1]]).detach()
    assert len(set(extended.tolist())) == 7 and float(extended.min()) > 0 and float(extended.max()) < 0.5


def test_uniform_extension_spreads_up_to_theta() -> None:
    old, new = MLP(2, (1, 4, 4), (3,)), MLP(2, (1, 4, 4), (200,))
    grow(old, new, "uniform", theta=0.2)
    drawn = new.fc1.weight[3:].detach()
    assert float(drawn.min()) >= 0 and float(drawn.max()) == pytest.approx(0.2, rel=0.02)
    assert float(drawn.mean()) == pytest.approx(0.1, rel=0.05)


def test_units_extended_with_zeros_never_learn_and_uniform_ones_do() -> None:
    x, y = torch.randn(16, 2, 24, 24), torch.randint(3, (16,))
    moved = {}
    for extension in ("zero", "uniform"):
        new = make_net("mlp-9-8", (2, 24, 24), 3)
        grow(trained("mlp-5-4"), new, extension, theta=0.1)
        F.cross_entropy(new(x), y).backward()
        moved[extension] = bool(new.fc1.weight.grad[5:].any())
    assert moved == {"zero": False, "uniform": True}


@pytest.mark.parametrize(
    ("small", "large", "words"),
    [
        ("mlp-5", "conv-5", "within its family: a net of family 'mlp' cannot become one of 'conv'"),
        ("resnet-8", "resnet-8", "family 'resnet' cannot grow. Families that can: mlp, conv, lstm"),
        ("mlp-5", "mlp-5-5", "not deeper: 2 layers cannot become 3"),
        ("mlp-5", "mlp-5", "no layer of this net is larger than the teacher's: .* Name a wider net"),
        ("mlp-5", "mlp-4", r"fc1.weight would shrink from \(5, 2, 24, 24\) to \(4, 2, 24, 24\)"),
    ],
)
def test_what_cannot_grow_is_refused(small: str, large: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        grow(trained(small), make_net(large, (2, 24, 24), 3), "zero")


def test_fewer_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"head.weight would shrink from \(3, 5\) to \(2, 5\)"):
        grow(trained("mlp-5"), make_net("mlp-5", (2, 24, 24), 2), "zero")


# --- psi ------------------------------------------------------------------------------------------------------


def test_gray_images_become_larger_rgb_ones_by_hand() -> None:
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    gray = torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]])
    assert torch.equal(embed(images, (3, 2, 3)), gray.expand(1, 3, 2, 3))
    assert torch.equal(embed(images, (1, 2, 2)), images)


def test_other_channels_are_the_first_ones_and_new_rows_lie_below() -> None:
    images = torch.rand(2, 2, 4, 5)
    made = embed(images, (4, 6, 5))
    assert made.shape == (2, 4, 6, 5)
    assert torch.equal(made[:, :2, :4], images)
    assert not made[:, 2:].any() and not made[:, :, 4:].any()


@pytest.mark.parametrize(("old", "new"), [((1, 4, 5), (3, 6, 7)), ((2, 4, 5), (3, 4, 9)), ((3, 4, 5), (3, 5, 5))])
def test_a_grown_net_says_of_psi_what_the_small_one_says(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    small, large = MLP(3, old, (5, 4)), MLP(4, new, (6, 4))
    grow(small, large, "zero")
    images = torch.randn(8, *old)
    said = large(embed(images, new))
    torch.testing.assert_close(said[:, :3], small(images), rtol=1e-5, atol=1e-6)
    assert said.std() > 0


@pytest.mark.parametrize("name", ["conv-3-4", "cifar-conv-2", "lstm-5"])
def test_gray_and_rgb_of_one_size_keep_the_function_of_every_net(name: str) -> None:
    small, large = make_net(name, (1, 24, 24), 3).eval(), make_net(name, (3, 24, 24), 3).eval()
    grow(small, large, "zero")
    images = torch.randn(4, 1, 24, 24)
    torch.testing.assert_close(large(embed(images, (3, 24, 24))), small(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 3), (3, 3, 9)])
def test_images_that_would_shrink_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=r"Images of \(1, 4, 4\) .* cannot become smaller ones of .*--image-size"):
        embed(torch.zeros(1, 1, 4, 4), shape)


def test_the_masks_say_where_the_small_nets_weights_are() -> None:
    old, new = MLP(1, (1, 1, 2), (2,)), MLP(2, (3, 1, 2), (3,))
    carried = grow(old, new, "zero")
    assert set(carried) == {name for name, _ in new.named_parameters()}
    unit, other = [True] * 6, [False] * 6
    assert carried["fc1.weight"].tolist() == [unit, unit, other]
    assert carried["fc1.bias"].tolist() == [True, True, False]
    assert carried["head.weight"].tolist() == [[True, True, False], [False] * 3]
    assert carried["head.bias"].tolist() == [True, False]


def test_the_masks_of_an_lstm_have_units_of_each_gate() -> None:
    carried = grow(make_net("lstm-2", (1, 4, 3), 2), make_net("lstm-3", (1, 4, 3), 2), "zero")
    assert carried["lstm1.bias_ih_l0"].tolist() == [True, True, False] * 4
    assert int(carried["lstm1.weight_hh_l0"].sum()) == 4 * 2 * 2
