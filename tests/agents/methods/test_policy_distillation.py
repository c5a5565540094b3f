import math
from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.batch import Batch
from agents.config import TrainConfig
from agents.methods.base import NetSpec
from agents.methods.policy_distillation import PolicyDistillation
from agents.rollout import Collector
from agents.teachers.formats import Teacher
from envs.atari import AtariEnvs
from envs.protocols import get_protocol
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet, MultiTaskNet
from kfrl.nets.atari.two_column import ColumnNet

PONG = NetSpec("pong", ("NOOP", "FIRE", "RIGHT"))
BREAKOUT = NetSpec("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"), sources=(PONG,))
ALONE = NetSpec("breakout", BREAKOUT.actions)


@pytest.fixture
def expert(teacher: Callable[..., Teacher]) -> Teacher:
    """Of Breakout, of another shape, with its actions in another order; it has no LEFT, and an UP."""
    return teacher(AtariNet(4, ((5, 8, 8), (4, 3, 1)), 6), ("UP", "RIGHT", "NOOP", "FIRE"))


@pytest.fixture
def other(teacher: Callable[..., Teacher]) -> Teacher:
    """Of Pong."""
    return teacher(AtariNet(3, ((2, 8, 8),), 7), ("NOOP", "RIGHT", "FIRE"), game="pong")


def start(
    spec: NetSpec, teachers: list[Teacher], task: NetSpec | None = None, **settings: object
) -> tuple[PolicyDistillation, MultiTaskNet]:
    config = {**settings}
    method = PolicyDistillation(
        TrainConfig(method="policy-distillation", convs=((4, 8, 8),), hidden=8, methods={"policy-distillation": config})
    )
    net = method.build(spec, teachers)
    assert isinstance(net, MultiTaskNet)
    method.begin(net, 0, task or spec, rank=0)
    return method, net


def rollout(method: PolicyDistillation, net: nn.Module, obs: Tensor, num_envs: int) -> Batch:
    context = method.features(net, obs)
    output = method.forward(net, obs, context)
    return Batch(obs, (context,), torch.zeros(len(obs), dtype=torch.int64), output, (), num_envs)


def softmax(logits: Tensor) -> np.ndarray:
    exponentials = np.exp(logits.detach().numpy().astype(np.float64))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


@pytest.mark.parametrize("loss", ["kl", "nll", "mse"])
def test_the_loss_is_the_papers_on_actions_of_the_same_meaning(expert: Teacher, obs: Tensor, loss: str) -> None:
    method, net = start(ALONE, [expert], distill_loss=loss, temperature=0.5)
    # Two steps of one environment, both the same, so that whatever is drawn is this sample.
    same = obs[:1].repeat(2, 1, 1, 1)
    term = method.losses(net, rollout(method, net, same, num_envs=1), 0.0)
    theirs = expert.net(obs[:1])[0][0]
    # NOOP, FIRE, RIGHT of the teacher's four; LEFT it has not.
    known = theirs[[2, 3, 1]]
    q = softmax(net.student(obs[:1])[0][0])
    p = softmax(known / 0.5)
    expected = {
        "kl": float((p * np.log(p / q[:3])).sum()),
        "nll": -math.log(q[int(known.argmax())]),
        "mse": float((known - net.student(obs[:1])[0][0, :3]).detach().square().sum()),
    }
    assert list(term) == ["distillation"]
    assert term["distillation"].item() == pytest.approx(2 * expected[loss], rel=1e-4)


def test_a_kl_can_be_turned_and_what_is_none_cannot(expert: Teacher, obs: Tensor) -> None:
    same = obs[:1].repeat(2, 1, 1, 1)
    method, net = start(ALONE, [expert], kl_direction="reverse", temperature=0.01)
    term = method.losses(net, rollout(method, net, same, num_envs=1), 0.0)["distillation"]
    q = softmax(net.student(obs[:1])[0][0, :3])
    p = softmax(expert.net(obs[:1])[0][0][[2, 3, 1]] / 0.01)
    assert term.item() == pytest.approx(2 * float((q * np.log(q / p)).sum()), rel=1e-4)
    with pytest.raises(UserError, match=r"--kl-direction mixed is a direction of --distill-loss kl"):
        start(ALONE, [expert], kl_direction="mixed", distill_loss="mse")


def test_it_is_a_sum_over_time_and_a_mean_over_environments(expert: Teacher, obs: Tensor) -> None:
    method, net = start(ALONE, [expert])
    one = method.losses(net, rollout(method, net, obs[:1], num_envs=1), 0.0)["distillation"]
    method, net2 = start(ALONE, [expert])
    net2.load_state_dict(net.state_dict())
    six = method.losses(net2, rollout(method, net2, obs[:1].repeat(6, 1, 1, 1), num_envs=2), 0.0)["distillation"]
    assert six.item() == pytest.approx(3 * one.item(), rel=1e-5)


@pytest.mark.parametrize(("memory", "known"), [(4, {1}), (8, {0, 1})])
def test_each_of_two_workers_remembers_half_of_the_replay_memory(
    expert: Teacher, obs: Tensor, memory: int, known: set[int]
) -> None:
    method, net = start(ALONE, [expert], replay_memory=memory, replay_reuse=16)
    assert method.config.shape.workers == 2
    for picture in obs:
        # A rollout of two samples of one picture.
        drawn, *_ = method.remembered(rollout(method, net, picture.repeat(2, 1, 1, 1), num_envs=1))
    assert {index for index, picture in enumerate(obs) for sample in drawn if torch.equal(sample, picture)} == known


def test_rewards_do_not_count(expert: Teacher) -> None:
    method, _ = start(ALONE, [expert])
    assert method.rl_terms({"policy": torch.ones(()), "value": torch.ones(())}) == {}


@pytest.mark.parametrize(("head", "temperature"), [("actor-critic", 1.0), ("q", 0.01)])
def test_the_temperature_suits_the_teachers_kind(
    teacher: Callable[..., Teacher], head: str, temperature: float
) -> None:
    kind = teacher(AtariNet(2, ((2, 8, 8),), 5, head=head), ("NOOP", "FIRE"))
    assert start(ALONE, [kind])[0].temperature == temperature
    assert start(ALONE, [kind], temperature=3.0)[0].temperature == 3.0


def test_the_teacher_acts_by_default_and_never_by_an_action_that_it_has_not(expert: Teacher, obs: Tensor) -> None:
    method, net = start(ALONE, [expert])
    context = method.features(net, obs)
    acting = method.acting_logits(net(obs)[0], context)
    torch.testing.assert_close(acting[:, :3], expert.net(obs)[0][:, [2, 3, 1]])
    assert acting[:, 3].tolist() == [-math.inf, -math.inf]


def test_the_student_may_act(expert: Teacher, obs: Tensor) -> None:
    method, net = start(ALONE, [expert], distill_actor="student")
    logits = net(obs)[0]
    assert method.acting_logits(logits, method.features(net, obs)) is logits


def test_a_q_network_acts_by_its_greatest_value(teacher: Callable[..., Teacher], obs: Tensor) -> None:
    method, net = start(ALONE, [teacher(AtariNet(2, ((2, 8, 8),), 5, head="q"), ("LEFT", "FIRE"))])
    (q,) = method.features(net, obs)
    probabilities = method.acting_logits(net(obs)[0], (q,)).exp()
    best = q.argmax(1)
    for row, action in enumerate(best.tolist()):
        assert action in (1, 3)
        assert probabilities[row].tolist() == pytest.approx(
            [0.975 if i == action else 0.025 if i in (1, 3) else 0.0 for i in range(4)]
        )


def test_games_are_played_by_the_actor(expert: Teacher) -> None:
    """A teacher who is sure of one action makes the games."""
    with torch.no_grad():
        expert.net.get_submodule("policy").bias.copy_(torch.tensor([0.0, 0.0, 0.0, 50.0]))
    method, net = start(ALONE, [expert])
    collector = Collector(AtariEnvs(get_protocol("paper", "breakout"), 2), method, net, 4, seed=1)
    assert set(collector.collect().actions.flatten().tolist()) == {1}
    method, net = start(ALONE, [expert], distill_actor="student")
    collector = Collector(AtariEnvs(get_protocol("paper", "breakout"), 2), method, net, 20, seed=1)
    assert len(set(collector.collect().actions.flatten().tolist())) > 2


def test_perturbing_a_teacher_changes_what_is_learned_and_learning_does_not_change_the_teacher(
    expert: Teacher, obs: Tensor
) -> None:
    def checksum() -> str:
        tensors = expert.net.state_dict().values()
        return sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()

    method, net = start(ALONE, [expert])
    before = method.losses(net, rollout(method, net, obs[:1], 1), 0.0)["distillation"].item()
    (group,) = method.parameter_groups(net)
    assert not {id(p) for p in group.parameters} & {id(p) for p in expert.net.parameters()}
    held = checksum()
    for _ in range(3):
        method.losses(net, rollout(method, net, obs[:1].clone(), 1), 0.0)["distillation"].backward()
        torch.optim.SGD(group.parameters, lr=0.1).step()
    assert checksum() == held
    with torch.no_grad():
        for parameter in expert.net.parameters():
            parameter.add_(0.1)
    method, fresh = start(ALONE, [expert])
    assert method.losses(fresh, rollout(method, fresh, obs[:1].clone(), 1), 0.0)["distillation"].item() != before


def test_imitating_one_screen_brings_the_policies_together(expert: Teacher, obs: Tensor) -> None:
    method, net = start(ALONE, [expert])
    (group,) = method.parameter_groups(net)
    optimiser = torch.optim.Adam(group.parameters, lr=0.01)
    history = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = method.losses(net, rollout(method, net, obs[:1], 1), 0.0)["distillation"]
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.01 < history[0]
    assert softmax(method.export(net)(obs[:1])[0])[0, 3] < 0.01


def test_each_game_has_its_own_teacher_and_head_on_one_body(expert: Teacher, other: Teacher, obs: Tensor) -> None:
    method, net = start(BREAKOUT, [other, expert], task=PONG)
    assert [phase.games for phase in method.phases(BREAKOUT, ())] == [(BREAKOUT, PONG)]
    context = method.features(net, obs)
    torch.testing.assert_close(context[0], other.net(obs)[0][:, [0, 2, 1]])
    output = method.forward(net, obs, context)
    assert output.logits.shape == (2, 3)
    batch = Batch(obs, (context,), torch.zeros(len(obs), dtype=torch.int64), output, (), 1)
    method.losses(net, batch, 0.0)["distillation"].backward()
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert trained == {
        f"{name}.{kind}" for name in ("student.conv1", "student.fc", "policies.pong") for kind in ("weight", "bias")
    }
    method.begin(net, 0, BREAKOUT, rank=0)
    assert method.forward(net, obs, ()).logits.shape == (2, 4)
    assert torch.equal(method.export(net)(obs)[0], net.student(obs)[0])


def test_a_head_is_left_alone_by_workers_of_other_games(expert: Teacher, other: Teacher) -> None:
    method, net = start(BREAKOUT, [other, expert])
    shared, *heads = method.parameter_groups(net)
    assert not shared.lazy
    assert [group.lazy for group in heads] == [True, True]
    assert [group.parameters for group in heads] == [
        tuple(head.parameters()) for head in (net.student.policy, net.policies["pong"])
    ]
    assert not {id(p) for p in shared.parameters} & {id(p) for group in heads for p in group.parameters}


def test_the_value_which_nobody_teaches_does_not_train(expert: Teacher) -> None:
    method, net = start(ALONE, [expert])
    (group,) = method.parameter_groups(net)
    assert not {id(p) for p in group.parameters} & {id(p) for p in net.student.value.parameters()}


@pytest.mark.parametrize(
    ("spec", "names", "words"),
    [
        (NetSpec("alien", ("NOOP",)), ["expert"], "No teacher plays alien.*--game one of: breakout"),
        (ALONE, ["expert", "expert"], "one teacher for each game, got breakout for breakout, breakout for breakout"),
        (NetSpec("breakout", ("DOWN", "DOWNFIRE")), ["expert"], "none of the actions of breakout .*DOWN, DOWNFIRE"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(expert: Teacher, spec: NetSpec, names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        start(spec, [expert for _ in names])


def test_a_teacher_that_does_not_name_its_layers_is_refused(
    teacher: Callable[..., Teacher], mlp: Callable[..., nn.Sequential]
) -> None:
    odd = mlp(3, 2)
    odd.arch = {}
    with pytest.raises(UserError, match="'breakout' is a Sequential, which does not name its hidden layers"):
        start(ALONE, [teacher(odd, ALONE.actions)])


def test_a_teacher_may_be_of_another_family(teacher: Callable[..., Teacher], obs: Tensor) -> None:
    net = ColumnNet(4, ((4, 8, 8),), 5)
    method, student = start(ALONE, [teacher(net, ALONE.actions)])
    torch.testing.assert_close(method.features(student, obs)[0], net(obs)[0])
