from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.batch import Batch
from agents.config import TrainConfig
from agents.methods.actor_mimic import MIMIC, ActorMimic, MimicNet
from agents.methods.base import NetSpec
from agents.teachers.formats import Teacher
from envs.atari import ALL_ACTIONS
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.atari.pathnet import ModularNet

PONG = NetSpec("pong", ("RIGHT", "NOOP", "FIRE"))
SEAQUEST = NetSpec("seaquest", ALL_ACTIONS)
SPEC = NetSpec("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"), sources=(PONG, SEAQUEST))


@pytest.fixture
def teachers(teacher: Callable[..., Teacher]) -> list[Teacher]:
    return [
        teacher(AtariNet(3, ((5, 8, 8), (4, 3, 1)), 6), ("NOOP", "FIRE", "RIGHT"), game="pong"),
        teacher(AtariNet(18, ((2, 8, 8),), 7), ALL_ACTIONS, game="seaquest"),
    ]


def start(
    teachers: list[Teacher], task: NetSpec, phase: int = 0, spec: NetSpec = SPEC, **settings: object
) -> tuple[ActorMimic, MimicNet]:
    config = {**settings}
    method = ActorMimic(
        TrainConfig(
            method="actor-mimic",
            steps=50,
            source_steps=70,
            convs=((4, 8, 8),),
            hidden=8,
            methods={"actor-mimic": config},
        )
    )
    net = method.build(spec, teachers)
    assert isinstance(net, MimicNet)
    method.begin(net, phase, task, rank=0)
    return method, net


def imitate(method: ActorMimic, net: MimicNet, obs: Tensor) -> dict[str, Tensor]:
    context = method.features(net, obs)
    actions = torch.zeros(len(obs), dtype=torch.int64)
    return method.losses(net, Batch(obs, (context,), actions, method.forward(net, obs, context), (), 1), 0.0)


def softmax(logits: Tensor) -> np.ndarray:
    exponentials = np.exp(logits.detach().numpy().astype(np.float64))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


def test_all_teachers_games_come_before_the_runs_own(teachers: list[Teacher]) -> None:
    method, _ = start(teachers, PONG)
    assert [(phase.games, phase.steps) for phase in method.phases(SPEC, ())] == [((PONG, SEAQUEST), 70), ((SPEC,), 50)]


def test_a_teacher_of_several_modules_a_layer_is_imitated(teacher: Callable[..., Teacher], obs: Tensor) -> None:
    paths = teacher(ModularNet(3, [1, 2], ((4, 8, 8),), 6), ("NOOP", "FIRE", "RIGHT"), game="pong")
    method, net = start([paths], PONG, spec=replace(SPEC, sources=(PONG,)))
    assert net.regressors["pong"].out_features == 2 * 6
    assert set(imitate(method, net, obs)) == {"distillation", "features"}


def test_policy_and_feature_regression_by_hand(teachers: list[Teacher], obs: Tensor) -> None:
    method, net = start(teachers, PONG, temperature=0.5, feature_coef=0.3)
    one = obs[:1]
    terms = imitate(method, net, one)
    theirs = teachers[0].net
    assert isinstance(theirs, AtariNet)
    h, h_e = net.student.body(one), theirs.body(one)
    # RIGHT, NOOP, FIRE in the teacher's order and in that of the 18.
    p = softmax(theirs(one)[0][0, [2, 0, 1]] / 0.5)
    own = [ALL_ACTIONS.index(name) for name in PONG.actions]
    q = softmax(net.policies[MIMIC](h)[0, own])
    assert terms["distillation"].item() == pytest.approx(-(p * np.log(q)).sum(), rel=1e-4)
    regressor = net.regressors["pong"]
    f = h.detach().numpy() @ regressor.weight.detach().numpy().T + regressor.bias.detach().numpy()
    assert f.shape == (1, 6)
    expected = 0.3 * ((f - h_e.detach().numpy()) ** 2).sum()
    assert terms["features"].item() == pytest.approx(expected, rel=1e-4)


def test_the_divergence_may_be_turned(teachers: list[Teacher], obs: Tensor) -> None:
    method, net = start(teachers, PONG, kl_direction="reverse")
    one = obs[:1]
    p = softmax(teachers[0].net(one)[0][0, [2, 0, 1]])
    q = softmax(net.policies[MIMIC](net.student.body(one))[0, [ALL_ACTIONS.index(name) for name in PONG.actions]])
    assert imitate(method, net, one)["distillation"].item() == pytest.approx((q * np.log(q / p)).sum(), rel=1e-3)


def test_the_direction_is_the_difference_of_the_policies_and_invalid_actions_do_not_move(
    teachers: list[Teacher], obs: Tensor
) -> None:
    method, net = start(teachers, PONG)
    one = obs[:1]
    imitate(method, net, one)["distillation"].backward()
    gradient = net.policies[MIMIC].bias.grad
    assert isinstance(gradient, Tensor)
    own = [ALL_ACTIONS.index(name) for name in PONG.actions]
    q = softmax(net.policies[MIMIC](net.student.body(one))[0, own])
    p = softmax(teachers[0].net(one)[0][0, [2, 0, 1]])
    np.testing.assert_allclose(gradient[own].numpy(), q - p, atol=1e-5)
    others = [index for index in range(18) if index not in own]
    assert gradient[others].tolist() == [0.0] * 15


def test_the_student_acts_with_the_games_actions_alone(teachers: list[Teacher], obs: Tensor) -> None:
    for task, count in ((PONG, 3), (SEAQUEST, 18)):
        method, net = start(teachers, task)
        context = method.features(net, obs)
        logits = method.forward(net, obs, context).logits
        assert logits.shape == (2, count)
        assert method.acting_logits(logits, context) is logits
    method, net = start(teachers, PONG, epsilon=0.1)
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    greedy = torch.tensor([[0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3]])  # the paper's epsilon
    torch.testing.assert_close(method.acting_logits(logits, ()).exp(), greedy)
    method, net = start(teachers, PONG, distill_actor="teacher")
    context = method.features(net, obs)
    torch.testing.assert_close(
        method.acting_logits(method.forward(net, obs, context).logits, context), teachers[0].net(obs)[0][:, [2, 0, 1]]
    )


@pytest.mark.parametrize("index", [0, 1])
def test_perturbing_any_teacher_changes_its_lessons_and_imitation_does_not_change_it(
    teachers: list[Teacher], obs: Tensor, index: int
) -> None:
    def checksum() -> str:
        tensors = [tensor for teacher in teachers for tensor in teacher.net.state_dict().values()]
        return sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()

    task = (PONG, SEAQUEST)[index]
    method, net = start(teachers, task)
    before = {name: term.item() for name, term in imitate(method, net, obs[:1]).items()}
    parameters = [p for group in method.parameter_groups(net) for p in group.parameters]
    held = checksum()
    sum(imitate(method, net, obs[:1]).values()).backward()
    torch.optim.SGD(parameters, lr=0.1).step()
    assert checksum() == held
    state = net.state_dict()
    with torch.no_grad():
        for parameter in teachers[index].net.parameters():
            parameter.add_(0.1)
    method, net = start(teachers, task)
    net.load_state_dict(state)
    after = imitate(method, net, obs[:1])
    assert all(after[name].item() != value for name, value in before.items())


def test_the_body_goes_over_the_last_layer_is_new_and_rewards_count_again(teachers: list[Teacher], obs: Tensor) -> None:
    method, net = start(teachers, PONG)
    names = {id(parameter): name for name, parameter in net.named_parameters()}

    def trained() -> set[str]:
        parameters = [p for group in method.parameter_groups(net) for p in group.parameters]
        return {names[id(p)].removesuffix(".weight").removesuffix(".bias") for p in parameters}

    terms = {"policy": torch.ones(()), "value": torch.ones(())}
    assert trained() == {"student.conv1", "student.fc", "policies.mimic", "regressors.pong", "regressors.seaquest"}
    assert method.rl_terms(terms) == {}
    method.begin(net, 1, SPEC, rank=0)
    assert trained() == {"student.conv1", "student.fc", "student.policy", "student.value"}
    assert method.rl_terms(terms) is terms
    context = method.features(net, obs)
    assert context == ()
    output = method.forward(net, obs, context)
    logits = output.logits
    assert torch.equal(logits, net.student(obs)[0])
    assert method.acting_logits(logits, context) is logits
    assert (
        method.losses(net, Batch(obs, (context,), torch.zeros(len(obs), dtype=torch.int64), output, (), 1), 0.0) == {}
    )
    exported = method.export(net)
    assert isinstance(exported, AtariNet)
    assert torch.equal(exported(obs)[0], logits)


def test_a_feature_net_is_left_alone_by_workers_of_other_games(teachers: list[Teacher]) -> None:
    method, net = start(teachers, PONG)
    shared, *own = method.parameter_groups(net)
    assert not shared.lazy
    assert [group.lazy for group in own] == [True, True]
    assert [group.parameters for group in own] == [tuple(part.parameters()) for part in net.regressors.values()]
    method.begin(net, 1, SPEC, rank=0)
    assert [group.lazy for group in method.parameter_groups(net)] == [False]


def test_two_teachers_of_one_game_are_refused(teachers: list[Teacher]) -> None:
    with pytest.raises(UserError, match="one teacher for each game, got pong for pong, pong for pong"):
        start([teachers[0], teachers[0]], PONG)
