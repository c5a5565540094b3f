import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.nets.atari.net import AtariNet, MultiTaskNet

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


def test_the_papers_net_has_681_027_parameters_with_18_actions() -> None:
    net = AtariNet(18)
    assert sum(p.numel() for p in net.parameters()) == 681_027
    assert {name: tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")} == {
        "conv1.weight": (16, 4, 8, 8),
        "conv2.weight": (32, 16, 4, 4),
        "fc.weight": (256, 32 * 9 * 9),
        "policy.weight": (18, 256),
        "value.weight": (1, 256),
    }


def test_it_names_its_layers_input_side_first() -> None:
    net = AtariNet(4, NATURE, 512)
    assert net.hidden_layers == ("conv1", "conv2", "conv3", "fc")
    assert net.head_layers == ("policy", "value")
    names = {name for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert names == {*net.hidden_layers, *net.head_layers}


def test_convolutions_are_stored_channels_last() -> None:
    weight = AtariNet(4).get_parameter("conv2.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


@pytest.mark.parametrize(("actions", "batch"), [(4, 1), (18, 3)])
def test_output_shapes(actions: int, batch: int) -> None:
    logits, values = AtariNet(actions)(torch.zeros(batch, 4, 84, 84, dtype=torch.uint8))
    assert logits.shape == (batch, actions)
    assert values.shape == (batch,)


@pytest.mark.parametrize("convs", [((16, 8, 4), (32, 4, 2)), NATURE])
def test_forward_is_convolutions_with_relu_on_screens_in_0_to_1(
    obs: Tensor, convs: tuple[tuple[int, int, int], ...]
) -> None:
    net = AtariNet(6, convs, 32)
    weights = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    h = obs.to(torch.float32) / 255
    for index, (_, _, stride) in enumerate(convs, start=1):
        h = F.conv2d(h, weights[f"conv{index}.weight"], weights[f"conv{index}.bias"], stride=stride).relu()
    h = F.linear(h.reshape(len(obs), -1), weights["fc.weight"], weights["fc.bias"]).relu()
    logits, values = net(obs)
    torch.testing.assert_close(
        logits, F.linear(h, weights["policy.weight"], weights["policy.bias"]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        values, F.linear(h, weights["value.weight"], weights["value.bias"]).squeeze(1), rtol=1e-4, atol=1e-5
    )


def test_a_q_network_values_a_state_at_its_best_action(obs: Tensor) -> None:
    net = AtariNet(5, NATURE, 24, head="q")
    q, values = net(obs)
    assert torch.equal(values, q.max(1).values)
    assert not [name for name in net.state_dict() if name.startswith("value")]
    twin = build_net(net.arch, 5)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(obs)[1], values)


def test_forward_leaves_the_observation_as_it_was(obs: Tensor) -> None:
    before = obs.clone()
    AtariNet(4)(obs)
    assert torch.equal(obs, before)


def test_layers_give_pre_activations(obs: Tensor) -> None:
    net, seen = AtariNet(4), []
    for layer in net.hidden_layers:
        net.get_submodule(layer).register_forward_hook(lambda *call: seen.append(call[2].detach().clone()))
    net(obs)
    assert len(seen) == 3
    assert all(float(z.min()) < 0 for z in seen)


def test_an_arch_block_builds_the_same_net(obs: Tensor) -> None:
    net = AtariNet(5, NATURE, 24)
    twin = build_net(net.arch, 5)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(obs)[0], net(obs)[0])


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ({"family": "atary"}, "Unknown network family 'atary'. Did you mean 'atari'"),
        ({}, "Unknown network family 'missing'"),
        ({"family": ["atari"]}, "Unknown network family"),
        ({"family": "atari", "width": 3}, "'width'"),
        ({"family": "atari", "convs": 3}, "does not describe a net"),
        ({"family": "atari", "convs": [[16, 8]]}, "does not describe a net"),
        ({"family": "atari", "convs": [[16, 8, 0]]}, "does not describe a net"),
        ({"family": "atari", "convs": [[16, -8, 4]]}, "does not describe a net"),
        ({"family": "atari", "hidden": "many"}, "does not describe a net"),
        ({"family": "atari", "head": "qq"}, "Expected head 'actor-critic' or 'q', got 'qq'"),
    ],
)
def test_an_arch_block_that_describes_no_net_is_refused(arch: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        build_net(arch, 4)


@pytest.mark.parametrize(
    ("layer", "gain"), [("conv1", 2**0.5), ("conv2", 2**0.5), ("fc", 2**0.5), ("policy", 0.01), ("value", 1.0)]
)
def test_weights_start_orthogonal(layer: str, gain: float) -> None:
    module = AtariNet(6).get_submodule(layer)
    rows = module.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, gain**2 * torch.eye(len(rows)), atol=1e-5, rtol=0)
    assert not module.bias.any()


def test_action_values_start_at_the_scale_of_values() -> None:
    rows = AtariNet(6, head="q").policy.weight.detach()
    torch.testing.assert_close(rows @ rows.T, torch.eye(6), atol=1e-5, rtol=0)


def test_more_heads_share_the_body_and_the_values(obs: Tensor) -> None:
    student = AtariNet(3, ((4, 8, 8),), 8)
    net = MultiTaskNet(student, {"pong": 6, "alien": 18})
    h = student.body(obs)
    assert h.shape == (2, 8)
    assert float(h.detach().min()) == 0.0
    for task, actions in (("pong", 6), ("alien", 18)):
        logits, values = net(obs, task)
        head = net.policies[task]
        assert logits.shape == (2, actions)
        torch.testing.assert_close(logits, F.linear(h, head.weight, head.bias))
        assert torch.equal(values, student(obs)[1])
    for ours, theirs in zip(net(obs), student(obs), strict=True):
        assert torch.equal(ours, theirs)
