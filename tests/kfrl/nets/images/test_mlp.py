import pytest
import torch

from kfrl.errors import UserError
from kfrl.nets.images.mlp import MLP
from kfrl.nets.images.registry import make_net


def test_forward_is_matrices_with_relu() -> None:
    net = MLP(3, (1, 2, 2), (5, 4)).eval()
    x, w = torch.randn(6, 1, 2, 2), net.state_dict()
    h = (x.reshape(6, 4) @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    h = (h @ w["fc2.weight"].T + w["fc2.bias"]).clamp(min=0)
    torch.testing.assert_close(net(x), h @ w["head.weight"].T + w["head.bias"])


def test_its_hidden_layers_give_pre_activations() -> None:
    net, seen = MLP(3, (1, 4, 4), (20, 20)), []
    assert net.hidden_layers == ("fc1", "fc2")
    for layer in net.hidden_layers:
        net.get_submodule(layer).register_forward_hook(lambda *call: seen.append(call[2].detach()))
    net(torch.randn(8, 1, 4, 4))
    assert all(float(z.min()) < 0 for z in seen) and len(seen) == 2


def test_dropout_leaves_out_hidden_units_and_inputs_in_training_alone() -> None:
    net = MLP(2, (1, 1, 1000), (1000,), dropout=0.5, input_dropout=0.2)
    torch.nn.init.zeros_(net.fc1.weight)
    torch.nn.init.ones_(net.fc1.bias)
    inputs, hidden = [], []
    net.fc1.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    net.head.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    net(torch.ones(4, 1, 1, 1000))
    assert float((inputs[0] == 0).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float((hidden[0] == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    net.eval()(torch.ones(4, 1, 1, 1000))
    assert bool((inputs[1] == 1).all()) and bool((hidden[1] == 1).all())


@pytest.mark.parametrize("hidden", [(), (3, 0)])
def test_a_layer_without_units_is_refused(hidden: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one unit"):
        MLP(3, (1, 2, 2), hidden)


def test_published_sizes() -> None:
    teacher = make_net("mlp-1200-1200-dropout", (1, 28, 28), 10)
    assert sum(p.numel() for p in teacher.parameters()) == 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10
    assert {name: p.numel() for name, p in make_net("mnist-mlp", (1, 28, 28), 10).named_parameters()} == {
        "fc1.weight": 784 * 256,
        "fc1.bias": 256,
        "fc2.weight": 256 * 256,
        "fc2.bias": 256,
        "head.weight": 2560,
        "head.bias": 10,
    }


def test_impossible_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"no net 'mlp-30' for images of 1 x 0 x 3.*channels, height and width"):
        make_net("mlp-30", (1, 0, 3), 10)
