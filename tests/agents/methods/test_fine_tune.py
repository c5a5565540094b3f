from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from agents.config import TrainConfig
from agents.methods.base import NetSpec
from agents.methods.fine_tune import FineTune
from agents.teachers.formats import Teacher
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.atari.two_column import ColumnNet

SPEC = NetSpec("pong", ("NOOP", "FIRE", "RIGHT"))
ACTIONS = ("NOOP", "FIRE", "RIGHT", "LEFT")


@pytest.fixture
def expert(teacher: Callable[..., Teacher]) -> Teacher:
    return teacher(AtariNet(4, ((6, 8, 8), (5, 4, 2), (4, 3, 1)), 12), ACTIONS)


def build(expert: Teacher, spec: NetSpec = SPEC) -> AtariNet:
    net = FineTune(TrainConfig()).build(spec, [expert])
    assert isinstance(net, AtariNet)
    return net


def test_every_hidden_layer_is_the_teachers(expert: Teacher) -> None:
    net = build(expert)
    body = {name: t for name, t in expert.net.state_dict().items() if name.split(".")[0] in net.hidden_layers}
    assert len(body) == 8
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in body.items())


def test_it_takes_the_teachers_shape_and_the_games_actions(expert: Teacher, obs: Tensor) -> None:
    net = build(expert)
    assert net.arch == expert.net.arch
    assert net(obs)[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hidden": 512}, "fine-tune does not use --hidden, got 512: .* teacher 'pong': 12.*--new-units"),
        ({"convs": ((4, 8, 8),)}, r"does not use --convs, got \(\(4, 8, 8\),\): .* teacher 'pong': \(\(6, 8, 8\)"),
    ],
)
def test_another_shape_than_the_teachers_is_refused(
    teacher: Callable[..., Teacher], expert: Teacher, given: dict[str, Any], words: str
) -> None:
    expert = teacher(expert.net, ACTIONS, name="pong")
    with pytest.raises(UserError, match=words):
        FineTune(TrainConfig(method="fine-tune", **given)).build(SPEC, [expert])


def test_the_teachers_own_shape_may_be_given(expert: Teacher) -> None:
    convs = ((6, 8, 8), (5, 4, 2), (4, 3, 1))
    assert FineTune(TrainConfig(convs=convs, hidden=12)).build(SPEC, [expert]).arch == expert.net.arch


def test_the_heads_start_as_init_says(expert: Teacher) -> None:
    net = FineTune(TrainConfig(init="torch")).build(SPEC, [expert])
    assert net.policy.bias.any(), "orthogonal weights have biases of 0"
    assert torch.equal(net.get_parameter("fc.weight"), expert.net.get_parameter("fc.weight"))


def test_heads_start_afresh(expert: Teacher) -> None:
    own = build(expert, NetSpec("breakout", ACTIONS)).state_dict()
    for name in ("policy.weight", "value.weight"):
        assert not torch.equal(own[name], expert.net.state_dict()[name]), name


def test_everything_trains_and_the_teacher_does_not(expert: Teacher, obs: Tensor) -> None:
    net = build(expert)
    before = [tensor.clone() for tensor in expert.net.state_dict().values()]
    (group,) = FineTune(TrainConfig()).parameter_groups(net)
    assert len(group.parameters) == len(list(net.parameters())) == 12
    assert all(parameter.requires_grad for parameter in group.parameters)
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in expert.net.parameters()}
    optimiser = torch.optim.SGD(group.parameters, lr=0.1)
    logits, values = net(obs)
    (logits.square().sum() + values.sum()).backward()
    optimiser.step()
    after = expert.net.state_dict().values()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_heads_only_trains_the_heads_and_leaves_the_body_the_teachers(expert: Teacher, obs: Tensor) -> None:
    method = FineTune(TrainConfig(methods={"fine-tune": {"heads_only": True}}))
    net = method.build(SPEC, [expert])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    (group,) = method.parameter_groups(net)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert {names[id(p)] for p in group.parameters} == {"policy.weight", "policy.bias", "value.weight", "value.bias"}
    logits, values = net(obs)
    (logits.square().sum() + values.sum()).backward()
    torch.optim.SGD(group.parameters, lr=0.1).step()
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"policy.weight", "policy.bias", "value.weight", "value.bias"}
    assert method.export(net).state_dict().keys() == before.keys()


def test_another_body_is_refused_with_what_takes_it(teacher: Callable[..., Teacher]) -> None:
    columns = teacher(ColumnNet(4, ((4, 8, 8),), 5), ACTIONS)
    with pytest.raises(UserError, match=r"'breakout' is a ColumnNet, .*--method progressive accept"):
        build(columns)


def test_a_q_networks_body_is_taken_under_actor_critic_heads(teacher: Callable[..., Teacher], obs: Tensor) -> None:
    q = AtariNet(4, ((4, 8, 8),), 5, head="q")
    net = build(teacher(q, ACTIONS))
    assert (net.head, len(list(net.parameters()))) == ("actor-critic", 8)
    assert torch.equal(net.body(obs), q.body(obs))


def grown(net: Literal["feed-forward", "lstm"] = "feed-forward", **own: object) -> FineTune:
    return FineTune(TrainConfig(net=net, methods={"fine-tune": own}))


def test_new_units_stand_beside_the_teachers_with_weights_as_large(expert: Teacher, obs: Tensor) -> None:
    net = grown(new_units=5).build(SPEC, [expert])
    assert net.arch["hidden"] == 17
    old, new = expert.net.get_parameter("fc.weight"), net.fc.weight.detach()
    assert torch.equal(new[:12], old)
    assert torch.equal(net.fc.bias[:12], expert.net.get_parameter("fc.bias"))
    assert new[12:].norm(dim=1).mean().item() == pytest.approx(old.norm(dim=1).mean().item(), rel=1e-5)
    assert net(obs)[0].shape == (2, 3)


def test_kept_heads_are_the_teachers_with_actions_in_the_order_of_the_game(expert: Teacher, obs: Tensor) -> None:
    net = grown(keep_heads=True).build(NetSpec("breakout", ("LEFT", "NOOP", "FIRE", "RIGHT")), [expert])
    (logits, values), (theirs, their_values) = net(obs), expert.net(obs)
    assert torch.equal(values, their_values)
    assert torch.allclose(logits, theirs[:, [3, 0, 1, 2]], atol=1e-6)
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(
    ("net", "spec", "lstm", "words"),
    [
        (AtariNet(4, ((4, 8, 8),), 5), SPEC, False, "its actions are NOOP, FIRE, RIGHT, LEFT, those of pong NOOP"),
        (AtariNet(4, ((4, 8, 8),), 5), NetSpec("breakout", ACTIONS), True, "those of the student its LSTM"),
        (AtariNet(4, ((4, 8, 8),), 5, head="q"), NetSpec("breakout", ACTIONS), False, "it is a Q-network"),
    ],
)
def test_heads_that_cannot_be_kept(
    teacher: Callable[..., Teacher], net: AtariNet, spec: NetSpec, lstm: bool, words: str
) -> None:
    with pytest.raises(UserError, match=f"--keep-heads: teacher .* {words}"):
        grown("lstm" if lstm else "feed-forward", keep_heads=True).build(spec, [teacher(net, ACTIONS)])


@pytest.mark.parametrize(
    ("own", "words"),
    [({"net": "lstm"}, "an LSTM"), ({"heads_only": True}, "--heads-only"), ({"keep_heads": True}, "--keep-heads")],
)
def test_new_units_that_are_not_possible(expert: Teacher, own: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"--new-units 5 does not go with {words}"):
        grown(new_units=5, **own).build(SPEC, [expert])
