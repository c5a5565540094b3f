from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agents.batch import joined
from agents.config import TrainConfig
from agents.engines.shared import untrained
from agents.methods.base import NetSpec
from agents.methods.progressive import Progressive
from agents.rollout import Collector
from agents.teachers.formats import Card, Teacher, load_agent, save_agent
from envs.atari import AtariEnvs
from envs.protocols import get_protocol
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.atari.progressive import ProgressiveNet
from kfrl.nets.atari.two_column import ColumnNet

SPEC = NetSpec("pong", ("NOOP", "FIRE", "RIGHT"))


@pytest.fixture
def teachers(teacher: Callable[..., Teacher]) -> list[Teacher]:
    return [
        teacher(AtariNet(2, ((5, 8, 8),), 6), ("NOOP", "FIRE")),
        teacher(AtariNet(4, ((6, 8, 4), (4, 4, 2)), 7), ("NOOP", "FIRE", "UP", "DOWN"), game="seaquest"),
    ]


def make(initial_scalar: float = 0.1) -> Progressive:
    config = {"initial_scalar": initial_scalar}
    return Progressive(TrainConfig(convs=((4, 8, 8), (4, 4, 2)), hidden=8, methods={"progressive": config}))


def test_the_trained_column_is_the_configured_net_with_the_games_actions(teachers: list[Teacher], obs: Tensor) -> None:
    net = make(0.01).build(SPEC, teachers)
    assert (net.arch["convs"], net.arch["hidden"]) == ([[4, 8, 8], [4, 4, 2]], 8)
    assert net(obs)[0].shape == (2, 3)
    assert list(net.scalars().values()) == pytest.approx([0.01] * 8)
    assert {name for name, _ in net.scalars()} == {"breakout", "seaquest"}


def test_teachers_are_not_in_the_optimiser(teachers: list[Teacher]) -> None:
    method = make()
    net = method.build(SPEC, teachers)
    (group,) = method.parameter_groups(net)
    frozen = {id(p) for teacher in teachers for p in teacher.net.parameters()}
    assert frozen
    assert not frozen & {id(p) for p in group.parameters}
    assert len(group.parameters) + len(frozen) == len(list(net.parameters()))


@pytest.mark.parametrize("index", [0, 1])
def test_perturbing_any_teacher_changes_the_student_and_its_export_does_not_need_them(
    teachers: list[Teacher], obs: Tensor, index: int
) -> None:
    method = make(1.0)
    net = method.build(SPEC, teachers)
    exported = method.export(net)
    before = [tensor.clone() for tensor in net(obs)]
    with torch.no_grad():
        for parameter in teachers[index].net.parameters():
            parameter.add_(0.1)
    after = method.forward(net, obs, method.features(net, obs))
    for old, new in zip(before, (after.logits, after.values), strict=True):
        assert not torch.equal(old, new)
    for old, new in zip(before, exported(obs), strict=True):
        assert torch.equal(old, new)


def checksum(teachers: list[Teacher]) -> str:
    tensors = [tensor for teacher in teachers for tensor in teacher.net.state_dict().values()]
    return sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def test_an_update_moves_everything_but_the_teachers(teachers: list[Teacher], obs: Tensor) -> None:
    method = make(1.0)
    net = method.build(SPEC, teachers)
    (group,) = method.parameter_groups(net)
    with torch.no_grad():
        for parameter in group.parameters:
            parameter.abs_()
    before, old = checksum(teachers), [p.detach().clone() for p in group.parameters]
    output = method.forward(net, obs, method.features(net, obs))
    (output.logits.square().sum() + output.values.square().sum()).backward()
    torch.optim.SGD(group.parameters, lr=0.1).step()
    assert all(not torch.equal(a, b) for a, b in zip(old, group.parameters, strict=True))
    assert checksum(teachers) == before


def test_a_teacher_sees_each_observation_of_a_run_once(teachers: list[Teacher]) -> None:
    method = make()
    spec = NetSpec("breakout", AtariEnvs(get_protocol("paper", "breakout"), 1).actions)
    net = method.build(spec, teachers)
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    teachers[0].net.register_forward_pre_hook(count)
    collector = Collector(AtariEnvs(get_protocol("paper", "breakout"), 2), method, net, 3, seed=1)
    rollouts = [collector.collect() for _ in range(2)]
    assert seen == 2 * (2 * 3 + 1)
    rollout = rollouts[-1]
    again = method.forward(net, rollout.obs, joined(rollout.contexts))
    torch.testing.assert_close(again.logits, rollout.logits)


def test_it_teaches_in_its_turn(teachers: list[Teacher], obs: Tensor, tmp_path: Path) -> None:
    method = make()
    net = method.build(SPEC, teachers)
    save_agent(tmp_path / "two.safetensors", method.export(net), Card("pong", SPEC.actions, net.arch))
    pupil = make().build(SPEC, [load_agent(tmp_path / "two.safetensors")])
    assert isinstance(pupil.columns[0], ProgressiveNet)
    assert pupil(obs)[0].shape == (2, 3)


def test_a_column_may_be_of_another_family(teacher: Callable[..., Teacher], obs: Tensor, tmp_path: Path) -> None:
    method = make()
    net = method.build(SPEC, [teacher(ColumnNet(3, ((4, 8, 8),), 5), SPEC.actions)])
    save_agent(tmp_path / "p.safetensors", method.export(net), Card("pong", SPEC.actions, net.arch))
    assert torch.equal(load_agent(tmp_path / "p.safetensors").net(obs)[0], net(obs)[0])


def test_the_scalars_are_logged(teachers: list[Teacher]) -> None:
    method = make(0.25)
    logged = method.metrics(method.build(SPEC, teachers))
    assert set(logged) == {
        f"progressive/alpha/{name}/{layer}"
        for name in ("breakout", "seaquest")
        for layer in ("conv2", "fc", "policy", "value")
    }
    assert set(logged.values()) == {0.25}


def test_baseline_4_has_columns_of_the_teachers_shapes_and_random_weights(teachers: list[Teacher], obs: Tensor) -> None:
    method = make()
    method = Progressive(replace(method.config, methods={"progressive": {"random_columns": True}}))
    net = method.build(SPEC, teachers)
    for column, teacher in zip(net.columns, teachers, strict=True):
        held = teacher.net.state_dict()
        assert {name: tensor.shape for name, tensor in column.state_dict().items()} == {
            name: tensor.shape for name, tensor in held.items()
        }
        assert not torch.equal(column.state_dict()["conv1.weight"], held["conv1.weight"])
        assert not any(parameter.requires_grad for parameter in column.parameters())
    # Another process builds other random columns, and gets these: they do not train.
    other = method.build(SPEC, teachers)
    other.load_state_dict(untrained(net, method.parameter_groups(net)), strict=False, assign=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(net.features(obs), other.features(obs), strict=True))
