import pytest
import torch
from torch import Tensor, nn

from kfrl.nets import build_net, state_size
from kfrl.nets.atari.lstm import LSTMNet
from kfrl.nets.atari.net import AtariNet


def twin_cell(net: LSTMNet) -> nn.LSTMCell:
    """PyTorch's cell with the net's weights."""
    cell = nn.LSTMCell(net.arch["hidden"], net.arch["hidden"])
    weights = {
        "weight_ih": net.gates.weight,
        "bias_ih": net.gates.bias,
        "weight_hh": net.recurrence.weight,
        "bias_hh": torch.zeros_like(net.gates.bias),
    }
    cell.load_state_dict(weights)
    return cell


def test_the_papers_net_has_256_cells_beside_the_feed_forward_nets_parameters() -> None:
    net = LSTMNet(18)
    more = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in AtariNet(18).parameters())
    assert more == 4 * 256 * (256 + 256 + 1)
    assert (state_size(net), state_size(AtariNet(18))) == (512, 0)


@pytest.mark.parametrize("hidden", [8, 256])
def test_a_step_is_that_of_pytorchs_cell_between_the_body_and_the_heads(hidden: int, obs: Tensor) -> None:
    net = LSTMNet(5, ((4, 8, 8),), hidden)
    state = torch.randn(2, 2 * hidden)
    logits, values, after = net.step(obs, state)
    h, c = twin_cell(net)(net.body(obs), (state[:, :hidden], state[:, hidden:]))
    torch.testing.assert_close(after, torch.cat([h, c], dim=1))
    torch.testing.assert_close(logits, net.policy(h))
    torch.testing.assert_close(values, net.value(h).squeeze(1))


def test_a_pass_without_a_state_is_that_of_an_episodes_first_observation(obs: Tensor) -> None:
    net = LSTMNet(5, ((4, 8, 8),), 8)
    logits, values, _ = net.step(obs, torch.zeros(2, 16))
    assert torch.equal(net(obs)[0], logits)
    assert torch.equal(net(obs)[1], values)


def test_an_arch_block_builds_the_same_net(obs: Tensor) -> None:
    net = LSTMNet(5, ((4, 8, 8),), 8)
    twin = build_net(net.arch, 5)
    twin.load_state_dict(net.state_dict())
    assert type(twin) is LSTMNet
    assert torch.equal(twin(obs)[0], net(obs)[0])


@pytest.mark.parametrize(("layer", "gain"), [("fc", 2**0.5), ("gates", 1.0), ("recurrence", 1.0), ("policy", 0.01)])
def test_weights_start_orthogonal(layer: str, gain: float) -> None:
    weight = LSTMNet(6).get_submodule(layer).get_parameter("weight").detach()
    square = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(square, gain**2 * torch.eye(len(square)), atol=1e-5, rtol=0)
    assert not LSTMNet(6).gates.bias.any()
