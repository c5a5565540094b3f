from pathlib import Path

import pytest
import torch
from torch import Tensor

from agents.teachers.formats import Card, load_agent, save_agent
from kfrl.flow import KnowledgeFlow, links_by_depth
from kfrl.nets import build_net
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.atari.two_column import BodyColumn, ColumnNet

SHAPE = {"convs": ((4, 8, 8),), "hidden": 8}


def test_a_column_is_a_nets_body(obs: Tensor) -> None:
    net, column = AtariNet(3, **SHAPE), BodyColumn(**SHAPE)
    assert set(column.state_dict()) == {name for name in net.state_dict() if name.split(".")[0] in net.hidden_layers}
    column.load_state_dict({name: net.state_dict()[name] for name in column.state_dict()})
    features = column(obs)
    torch.testing.assert_close(net.policy(features), net(obs)[0])
    assert features.shape == (2, 8)
    assert features.min() == 0


def test_the_policy_reads_both_columns_and_the_value_the_second(obs: Tensor) -> None:
    net = ColumnNet(3, **SHAPE)
    logits, values = net(obs)
    left, right = net.policy.weight.split(8, dim=1)
    by_hand = net.distilled(obs) @ left.T + net.own(obs) @ right.T + net.policy.bias
    torch.testing.assert_close(logits, by_hand)
    torch.testing.assert_close(values, net.value(net.own(obs)).squeeze(1))
    assert values.shape == (2,)


def test_it_is_saved_and_loaded_as_an_agent(tmp_path: Path, obs: Tensor) -> None:
    net = ColumnNet(3, **SHAPE)
    assert build_net(net.arch, 3).state_dict().keys() == net.state_dict().keys()
    save_agent(tmp_path / "a.safetensors", net, Card("pong", ("NOOP", "FIRE", "UP"), net.arch))
    loaded = load_agent(tmp_path / "a.safetensors").net
    for ours, theirs in zip(net(obs), loaded(obs), strict=True):
        assert torch.equal(ours, theirs)


def test_a_student_can_learn_from_it(obs: Tensor) -> None:
    teacher, student = ColumnNet(3, **SHAPE), AtariNet(3, **SHAPE)
    flow = KnowledgeFlow(student, {"it": teacher}, links_by_depth(student, {"it": teacher}), obs)
    before = flow(obs)[0]
    with torch.no_grad():
        teacher.get_parameter("own.conv1.bias").add_(1.0)
    assert not torch.equal(flow(obs)[0], before)


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="99"):
        ColumnNet(3, ((4, 99, 4),))
