import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kfrl.errors import UserError
from kfrl.nets.images.mlp import MLP
from kfrl.nets.images.registry import make_net
from kfrl.nets.images.widen import grow

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
