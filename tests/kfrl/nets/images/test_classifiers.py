import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.flow import KnowledgeFlow, links_by_depth
from kfrl.nets.images.conv import ConvNet
from kfrl.nets.images.densenet import DenseNet
from kfrl.nets.images.lstm import RowLSTM
from kfrl.nets.images.registry import make_net
from kfrl.nets.images.resnet import ResNet, WideResNet

SMALL = ("mlp-6", "conv-4-5", "cifar-conv-2", "lstm-5", "resnet-8", "wrn-10-1", "densenet-7-3", "densenet-bc-10-2")


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm by its formula, with the running statistics."""
    mean, var, scale, shift = (
        w[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def with_statistics(net: nn.Module) -> dict[str, Tensor]:
    """Gives batch norms statistics that are not 0 and 1; the net's tensors."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    net.eval()
    return net.state_dict()


def test_resnet_is_that_of_the_paper() -> None:
    net = ResNet(4, (3, 8, 8), 14)
    x, w = torch.randn(5, 3, 8, 8), with_statistics(net)
    h = norm(F.conv2d(x, w["stem.0.weight"], padding=1), w, "stem.1").relu()
    for stage, channels in ((1, 16), (2, 32), (3, 64)):
        for block in (0, 1):
            at, stride = f"stage{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = norm(F.conv2d(h, w[f"{at}.conv1.weight"], stride=stride, padding=1), w, f"{at}.bn1").relu()
            inner = norm(F.conv2d(inner, w[f"{at}.conv2.weight"], padding=1), w, f"{at}.bn2")
            shortcut = torch.zeros_like(inner)
            shortcut[:, : h.shape[1]] = h[:, :, ::stride, ::stride]
            h = (inner + shortcut).relu()
        assert h.shape == (5, channels, 16 // 2**stage, 16 // 2**stage)
    expected = h.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


def test_wide_resnet_is_that_of_the_paper() -> None:
    net = WideResNet(4, (3, 8, 8), 10, 2)
    x, w = torch.randn(5, 3, 8, 8), with_statistics(net)
    h = F.conv2d(x, w["stem.weight"], padding=1)
    for stage in (1, 2, 3):
        at, stride = f"stage{stage}.0", 1 if stage == 1 else 2
        before = norm(h, w, f"{at}.bn1").relu()
        inner = norm(F.conv2d(before, w[f"{at}.conv1.weight"], stride=stride, padding=1), w, f"{at}.bn2").relu()
        inner = F.conv2d(inner, w[f"{at}.conv2.weight"], padding=1)
        h = inner + F.conv2d(before, w[f"{at}.shortcut.weight"], stride=stride)
    h = norm(h, w, "norm").relu()
    assert h.shape == (5, 128, 2, 2)
    expected = h.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "layers"), [(90, 14), (80, 12), (82, 13), (100, 16)])
def test_a_densenet_bc_of_another_depth_has_blocks_of_a_sixth_rounded_down(depth: int, layers: int) -> None:
    net = DenseNet(10, (3, 8, 8), depth, 2, bottleneck=True)
    assert [len(net.get_submodule(f"block{index}")) for index in (1, 2, 3)] == [layers] * 3


def test_densenet_bc_is_that_of_the_paper() -> None:
    net = DenseNet(4, (3, 8, 8), 10, 3, bottleneck=True)
    x, w = torch.randn(5, 3, 8, 8), with_statistics(net)
    h = F.conv2d(x, w["stem.weight"], padding=1)
    assert h.shape[1] == 6
    for block in (1, 2, 3):
        at = f"block{block}.0.added"
        added = F.conv2d(norm(h, w, f"{at}.0.0").relu(), w[f"{at}.0.2.weight"])
        assert added.shape[1] == 12
        added = F.conv2d(norm(added, w, f"{at}.1.0").relu(), w[f"{at}.1.2.weight"], padding=1)
        h = torch.cat([h, added], 1)
        if block < 3:
            at, channels = f"transition{block}.0", h.shape[1]
            h = F.avg_pool2d(F.conv2d(norm(h, w, f"{at}.0").relu(), w[f"{at}.2.weight"]), 2)
            assert h.shape[1] == channels // 2
    h = norm(h, w, "norm").relu()
    expected = h.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


def test_the_cifar_net_of_pytorch_playground() -> None:
    net = make_net("cifar-conv-2", (3, 32, 32), 4)
    x, w = torch.randn(3, 3, 32, 32), with_statistics(net)
    h = x
    for layer in range(1, 8):
        h = F.conv2d(h, w[f"layer{layer}.0.weight"], w[f"layer{layer}.0.bias"], padding=0 if layer == 7 else 1)
        mean, var = (w[f"layer{layer}.1.running_{part}"][None, :, None, None] for part in ("mean", "var"))
        h = ((h - mean) / (var + 1e-5).sqrt()).relu()
        if layer in (2, 4, 6, 7):
            h = F.max_pool2d(h, 2)
    assert h.shape == (3, 16, 1, 1)
    torch.testing.assert_close(net(x), F.linear(h.flatten(1), w["head.weight"], w["head.bias"]), rtol=1e-4, atol=1e-4)


def test_the_stl_net_reads_96_pixels_through_five_poolings() -> None:
    net, shapes = make_net("stl-conv-2", (3, 96, 96), 10), []
    for layer in net.hidden_layers:
        net.get_submodule(layer).register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
    assert net(torch.randn(2, 3, 96, 96)).shape == (2, 10)
    assert shapes == [(2, 96, 96), (4, 48, 48), (8, 24, 24), (8, 12, 12), (16, 4, 4), (16, 2, 2)]


def test_a_conv_net_with_fully_connected_layers() -> None:
    net = ConvNet(3, (1, 8, 8), [[2, 3], [4]], hidden=(5,))
    x, w = torch.randn(6, 1, 8, 8), net.state_dict()
    h = x
    for layer in (1, 2, 3):
        h = F.conv2d(h, w[f"layer{layer}.0.weight"], w[f"layer{layer}.0.bias"], padding=1).relu()
        h = F.max_pool2d(h, 2) if layer > 1 else h
    h = F.linear(h.flatten(1), w["fc1.weight"], w["fc1.bias"]).relu()
    torch.testing.assert_close(net(x), F.linear(h, w["head.weight"], w["head.bias"]))
    assert net.hidden_layers == ("layer1", "layer2", "layer3", "fc1")
    assert net.flattened == {"fc1.weight": (5, 4, 2, 2)}


def test_an_lstm_reads_rows_from_the_top_and_answers_after_the_last() -> None:
    net = RowLSTM(3, (2, 4, 5), (6,))
    x, w = torch.randn(7, 2, 4, 5), net.state_dict()
    h = c = torch.zeros(7, 6)
    for row in range(4):
        step = torch.cat([x[:, 0, row], x[:, 1, row]], 1)
        gates = step @ w["lstm1.weight_ih_l0"].T + h @ w["lstm1.weight_hh_l0"].T
        i, f, g, o = (gates + w["lstm1.bias_ih_l0"] + w["lstm1.bias_hh_l0"]).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    torch.testing.assert_close(net(x), h @ w["head.weight"].T + w["head.bias"])


@pytest.mark.parametrize("name", [name for name in SMALL if name != "lstm-5"])
def test_hidden_layers_give_pre_activations_that_decide_the_logits(name: str) -> None:
    net, seen = make_net(name, (3, 32, 32), 4).eval(), {}
    x = torch.randn(2, 3, 32, 32)
    plain = net(x)
    for layer in net.hidden_layers:
        module = net.get_submodule(layer)
        keep = module.register_forward_hook(
            lambda *call, layer=layer: seen.__setitem__(layer, call[2].detach().clone())
        )
        net(x)
        keep.remove()
        assert float(seen[layer].min()) < 0, "an activation went before"
        change = module.register_forward_hook(lambda *call: call[2] + torch.randn_like(call[2]))
        assert not torch.equal(net(x), plain)
        change.remove()


@pytest.mark.parametrize(("student", "teacher"), [("resnet-8", "wrn-10-1"), ("densenet-7-3", "conv-4-5")])
def test_knowledge_flows_between_families(student: str, teacher: str) -> None:
    nets = {name: make_net(name, (3, 16, 16), 4) for name in (student, teacher)}
    x = torch.randn(2, 3, 16, 16)
    links = links_by_depth(nets[student], {"t": nets[teacher]})
    assert [link.student for link in links] == list(nets[student].hidden_layers)
    flow = KnowledgeFlow(nets[student], {"t": nets[teacher]}, links, x).eval()
    before = flow(x)
    assert not torch.equal(before, flow.student(x))
    nn.init.zeros_(
        nets[teacher]
        .get_submodule(links[-1].layer)
        .get_parameter(
            next(
                name for name, _ in nets[teacher].get_submodule(links[-1].layer).named_parameters() if "weight" in name
            )
        )
    )
    assert not torch.equal(flow(x), before)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name: str) -> None:
    net = make_net(name, (1, 32, 32), 3)
    net(torch.randn(4, 1, 32, 32)).square().sum().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("resnet-21", (3, 32, 32), r"6 n \+ 2 layers"),
        ("wrn-27-2", (3, 32, 32), r"6 n \+ 4 layers"),
        ("wrn-16-0", (3, 32, 32), "a width, got 16 and 0"),
        ("densenet-41-12", (3, 32, 32), r"DenseNet has 3 n \+ 4 layers"),
        ("densenet-bc-41-12", (3, 32, 32), "DenseNet-BC has an even number of layers"),
        ("densenet-bc-40-0", (3, 32, 32), r"DenseNet-BC has an even number of layers.*and 0"),
        ("conv-4-4-4", (1, 7, 7), r"images of \(1, 7, 7\) are too small for 3 blocks"),
        ("cifar-conv-2", (3, 23, 23), "too small for 4 blocks"),
        ("conv-0", (1, 8, 8), "at least one channel"),
        ("lstm-0", (1, 8, 8), "at least one unit"),
    ],
)
def test_a_net_that_cannot_be_is_refused(name: str, shape: tuple[int, int, int], words: str) -> None:
    with pytest.raises(UserError, match=rf"no net '{name}' for images of .*{words}"):
        make_net(name, shape, 10)
