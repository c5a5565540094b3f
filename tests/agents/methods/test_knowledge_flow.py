import math
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stable_baselines3 import PPO
from torch import Tensor, nn

from agents.config import FlowConfig, TrainConfig
from agents.methods.base import Batch, NetSpec, joined
from agents.methods.knowledge_flow import GuidedFlow, KnowledgeFlowMethod
from agents.objective import Samples, a3c_terms, ppo_terms
from agents.rollout import Collector, Rollout
from agents.teachers.formats import Card, Teacher, save_agent
from agents.teachers.store import load_teachers
from envs.atari import ALL_ACTIONS, AtariEnvs, Episode, identify
from envs.protocols import get_protocol
from kfrl.config import LinkConfig
from kfrl.flow import KnowledgeFlow
from kfrl.nets.atari.net import AtariNet

SPEC = NetSpec("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"))
OTHER_ACTIONS = ("FIRE", "UP", "LEFT", "NOOP", "RIGHT")
"""The student's actions in another order, and one that it lacks."""
BODY = [("conv1", "conv1"), ("conv2", "conv3"), ("fc", "fc")]
HEADS = [("policy", "policy"), ("value", "value")]
ENVS = 2


def make_method(**flow: object) -> KnowledgeFlowMethod:
    return KnowledgeFlowMethod(TrainConfig(convs=((4, 8, 8), (4, 4, 2)), hidden=8, flow=FlowConfig(**flow)))


@pytest.fixture
def expert(teacher: Callable[..., Teacher]) -> Teacher:
    """Of the same game, with another shape and its actions in another order."""
    return teacher(AtariNet(5, ((5, 8, 8), (4, 3, 1), (3, 3, 1)), 6), OTHER_ACTIONS)


@pytest.fixture
def stranger(teacher: Callable[..., Teacher]) -> Teacher:
    """Of another game."""
    return teacher(AtariNet(3, ((2, 8, 8),), 7), ("NOOP", "FIRE", "DOWN"), game="seaquest")


def randomise(net: nn.Module) -> None:
    """Large steps in place, as an update of shared memory does."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn_like(parameter))


def play(method: KnowledgeFlowMethod, net: nn.Module, obs: Tensor, scores: tuple[float, ...] = ()) -> Batch:
    context = method.observe(net, obs)
    episodes = tuple(Episode(0, score, 1, False) for score in scores)
    return Batch(obs, (context,), *method.forward(net, obs, context), episodes, num_envs=ENVS)


def other_obs() -> Tensor:
    return torch.randint(0, 256, (4, 4, 84, 84), dtype=torch.uint8)


def softmax(logits: Tensor) -> np.ndarray:
    exponentials = np.exp(logits.detach().numpy().astype(np.float64))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def kl(p: Tensor, q: Tensor) -> np.ndarray:
    """D_KL[softmax(p) || softmax(q)] of each sample."""
    return np.asarray((softmax(p) * np.log(softmax(p) / softmax(q))).sum(1))


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


# --- links --------------------------------------------------------------------------------------------------


def linked(method: KnowledgeFlowMethod, teachers: Sequence[Teacher], name: str) -> list[tuple[str, str]]:
    links = method.build(SPEC, teachers).links
    return [(link.student, link.layer) for link in links if link.teacher == name]


def test_heads_are_linked_to_a_teacher_of_the_same_game(expert: Teacher, stranger: Teacher) -> None:
    teachers = [stranger, expert]
    assert linked(make_method(), teachers, "breakout") == BODY + HEADS
    assert linked(make_method(), teachers, "seaquest") == [("conv1", "conv1"), ("conv2", "conv1"), ("fc", "fc")]


def test_heads_may_be_linked_to_no_teacher_or_to_all(expert: Teacher, stranger: Teacher) -> None:
    never, always = make_method(link_heads="never"), make_method(link_heads="always")
    assert linked(never, [stranger, expert], "breakout") == BODY
    for name in ("breakout", "seaquest"):
        assert linked(always, [stranger, expert], name)[3:] == HEADS


def test_links_may_be_given_by_name(expert: Teacher) -> None:
    links = (LinkConfig("fc", "breakout", "conv2"),)
    assert linked(make_method(links=links), [expert], "breakout") == [("fc", "conv2")]


def test_the_student_is_the_configured_net(expert: Teacher) -> None:
    student = make_method().build(SPEC, [expert]).student
    assert isinstance(student, AtariNet)
    assert student.arch["convs"] == [[4, 8, 8], [4, 4, 2]]
    assert (student.fc.out_features, student.policy.out_features) == (8, 4)


def lean_on_teachers(net: KnowledgeFlow, *layers: str) -> None:
    """p of the student about 1e-26 in these layers."""
    with torch.no_grad():
        for layer in layers:
            net.mixing.get_parameter(f"raw.{layer}")[0] = -60.0


def test_actions_meet_by_meaning(expert: Teacher, obs: Tensor) -> None:
    net = make_method().build(SPEC, [expert])
    lean_on_teachers(net, "policy", "value")
    logits, values = net(obs)
    theirs, their_values = expert.net(obs)
    order = [OTHER_ACTIONS.index(action) for action in SPEC.actions]
    assert order == [3, 0, 4, 2]
    torch.testing.assert_close(logits, theirs[:, order])
    torch.testing.assert_close(values, their_values)


def test_an_action_that_the_teacher_lacks_gets_nothing_from_it(stranger: Teacher, obs: Tensor) -> None:
    net = make_method(link_heads="always").build(SPEC, [stranger])
    lean_on_teachers(net, "policy")
    logits, theirs = net(obs)[0], stranger.net(obs)[0]
    expected = torch.stack([theirs[:, 0], theirs[:, 1], torch.zeros(2), torch.zeros(2)], 1)
    torch.testing.assert_close(logits, expected)


def test_each_teacher_of_several_has_its_own_actions(
    teacher: Callable[..., Teacher], small_net: Callable[[int], AtariNet], obs: Tensor
) -> None:
    first = teacher(small_net(4), ("NOOP", "FIRE", "RIGHT", "LEFT"))
    second = teacher(small_net(4), ("LEFT", "RIGHT", "FIRE", "NOOP"), name="breakout-2")
    net = make_method(student_weight=1e-9).build(SPEC, [first, second])
    expected = (first.net(obs)[0] + second.net(obs)[0].flip(1)) / 2
    torch.testing.assert_close(net(obs)[0], expected)


# --- teachers of other programs -----------------------------------------------------------------------------

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


@pytest.fixture
def shelf(tmp_path: Path) -> tuple[Teacher, ...]:
    """A native A3C agent of Seaquest (18 actions), an SB3 PPO of Breakout (4) and a CleanRL DQN of Pong (6)."""
    a3c = AtariNet(18)
    save_agent(tmp_path / "a3c.safetensors", a3c, Card("seaquest", ALL_ACTIONS, a3c.arch))
    space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    PPO("CnnPolicy", Pictures(space, gym.spaces.Discrete(4)), device="cpu").save(tmp_path / "ppo.zip")
    dqn = AtariNet(6, NATURE, 512).state_dict()
    names = {"conv1": "network.0", "conv2": "network.2", "conv3": "network.4", "fc": "network.7", "policy": "network.9"}
    torch.save(
        {f"{theirs}.{kind}": dqn[f"{ours}.{kind}"] for ours, theirs in names.items() for kind in ("weight", "bias")},
        tmp_path / "dqn",
    )
    references = [f"{tmp_path}/a3c.safetensors", f"sb3:{tmp_path}/ppo.zip@Breakout", f"cleanrl:{tmp_path}/dqn@Pong"]
    return load_teachers(references, tmp_path, identify)[0]


class Pictures(gym.Env[np.ndarray, int]):
    """Spaces without a game."""

    def __init__(self, observation_space: gym.spaces.Box, action_space: gym.spaces.Discrete) -> None:
        self.observation_space, self.action_space = observation_space, action_space


def test_teachers_of_any_program_teach_one_student_together(shelf: tuple[Teacher, ...], obs: Tensor) -> None:
    net = KnowledgeFlowMethod(TrainConfig(flow=FlowConfig(link_heads="always"))).build(SPEC, shelf)
    table = {(row.link.student, row.link.teacher): row for row in net.link_table()}
    expected = {
        ("conv1", "seaquest"): ("conv1", (16, 20, 20), "Conv1x1", 16 * 16),
        ("conv2", "seaquest"): ("conv2", (32, 9, 9), "Conv1x1", 32 * 32),
        ("fc", "seaquest"): ("fc", (256,), "Dense", 256 * 256),
        ("policy", "seaquest"): ("policy", (18,), "Dense", 4 * 18),
    }
    for teacher, actions in (("breakout", 4), ("pong", 6)):
        expected |= {
            ("conv1", teacher): ("conv1", (32, 20, 20), "Conv1x1", 16 * 32),
            ("conv2", teacher): ("conv3", (64, 7, 7), "Conv1x1", 32 * 64),
            ("fc", teacher): ("fc", (512,), "Dense", 256 * 512),
            ("policy", teacher): ("policy", (actions,), "Dense", 4 * actions),
        }
    expected |= {("value", name): ("value", (1,), "Dense", 1) for name in ("seaquest", "breakout", "pong")}
    found = {key: (row.link.layer, row.teacher_shape, row.transform, row.parameters) for key, row in table.items()}
    assert found == expected
    assert net(obs)[0].shape == (2, 4)


def test_each_of_them_reaches_the_student_until_independence(shelf: tuple[Teacher, ...], obs: Tensor) -> None:
    net = KnowledgeFlowMethod(TrainConfig()).build(SPEC, shelf)
    for teacher in shelf:
        for layer in ("conv1", "fc"):
            before, weight = net(obs)[0], teacher.net.get_parameter(f"{layer}.weight")
            weight.add_(0.1 * torch.randn_like(weight))
            assert not torch.allclose(net(obs)[0], before), f"{teacher.name} {layer}"
    net.handover = 1.0
    before = net(obs)[0]
    for teacher in shelf:
        teacher.net.get_parameter("fc.weight").add_(1.0)
    assert torch.equal(net(obs)[0], before)


def test_a_q_teacher_of_the_same_game_is_linked_at_its_heads(obs: Tensor, teacher: Callable[..., Teacher]) -> None:
    q = teacher(AtariNet(5, ((5, 8, 8), (4, 3, 1), (3, 3, 1)), 6, head="q"), OTHER_ACTIONS)
    net = make_method().build(SPEC, [q])
    lean_on_teachers(net, "policy", "value")
    theirs, their_values = q.net(obs)
    logits, values = net(obs)
    torch.testing.assert_close(logits, theirs[:, [3, 0, 4, 2]])
    torch.testing.assert_close(values, their_values)


# --- acting -------------------------------------------------------------------------------------------------


def test_what_was_observed_is_what_forward_would_compute(expert: Teacher, obs: Tensor) -> None:
    method = make_method()
    net = method.build(SPEC, [expert])
    context = method.observe(net, obs)
    assert len(context) == 5
    for cached, computed in zip(method.forward(net, obs, context), net(obs), strict=True):
        assert torch.equal(cached, computed)


def test_the_hand_over_follows_the_run(expert: Teacher, obs: Tensor) -> None:
    method = make_method(handover_start=0.5, independence_at=0.75)
    net = method.build(SPEC, [expert])
    shares, contexts = [], []
    for progress in (0.0, 0.5, 0.625, 0.75, 1.0):
        method.schedule(net, progress)
        shares.append((net.handover, method.independent(net)))
        contexts.append(len(method.observe(net, obs)))
    assert shares == [(0.0, False), (0.0, False), (0.875, False), (1.0, True), (1.0, True)]
    assert contexts == [5, 5, 5, 0, 0]


# --- losses -------------------------------------------------------------------------------------------------


def test_the_terms_of_the_objective(expert: Teacher, obs: Tensor) -> None:
    def terms(handover: float, **flow: object) -> set[str]:
        method = make_method(**flow)
        net = method.build(SPEC, [expert])
        net.handover = handover
        return set(method.losses(net, play(method, net, obs), 0.5))

    assert terms(0.5) == {"policy_kl", "dependence", "handover"}
    assert terms(0.5, policy_kl_coef=0.0) == {"dependence", "handover"}
    assert terms(0.5, handover_coef=0.0) == {"policy_kl", "dependence"}
    assert terms(1.0) == {"policy_kl"}


def test_links_are_distilled_if_a_teacher_plays_the_game(expert: Teacher, stranger: Teacher, obs: Tensor) -> None:
    def distilled(teachers: Sequence[Teacher], **flow: object) -> tuple[bool, bool]:
        """Whether it is, and whether it is said that it is not."""
        method = make_method(**flow)
        net = method.build(SPEC, teachers)
        said = " ".join(method.notes(net))
        return "handover" in method.losses(net, play(method, net, obs), 0.5), "nothing is distilled" in said

    assert distilled([stranger, expert]) == distilled([expert], link_heads="never") == (True, False)
    assert distilled([stranger], handover_from="any") == (True, False)
    assert distilled([stranger]) == distilled([stranger], link_heads="always") == (False, True)
    assert distilled([expert], handover_coef=0.0) == distilled([stranger], handover_coef=0.0) == (False, False)


def test_hidden_features_are_matched_wherever_they_go_and_logits_are_not(expert: Teacher, obs: Tensor) -> None:
    def scales(layer: str, *links: LinkConfig, **flow: object) -> list[float]:
        method = make_method(links=links, **flow)
        net = method.build(SPEC, [expert])
        method.prepare(net, lambda: obs)
        return net.get_buffer(f"scales.{layer}").tolist()

    to_head = LinkConfig("policy", "breakout", "fc")
    both = scales("policy", to_head, LinkConfig("policy", "breakout", "policy"))
    assert both[1] != 1.0
    assert both[0] == both[2] == 1.0
    assert scales("fc")[1] != 1.0
    assert scales("policy") == scales("value") == scales("fc", match_scales=False) == [1.0, 1.0]


def play_on(
    method: KnowledgeFlowMethod, net: nn.Module, *, keep_graph: bool = True, envs: int = ENVS, t_max: int = 3
) -> Collector:
    games = AtariEnvs(get_protocol("paper", "breakout"), envs)
    return Collector(games, method, net, t_max, seed=1, keep_graph=keep_graph)


@pytest.mark.parametrize(("envs", "t_max", "keep_graph"), [(2, 3, True), (2, 3, False), (1, 5, False), (3, 1, True)])
def test_policy_kl_compares_the_previous_parameters_on_the_rollouts_first_observations(
    expert: Teacher, envs: int, t_max: int, keep_graph: bool
) -> None:
    coefficient = 0.3
    method = make_method(policy_kl_coef=coefficient, link_heads="never")
    net = method.build(SPEC, [expert])
    collector = play_on(method, net, keep_graph=keep_graph, envs=envs, t_max=t_max)

    def policy_kl(rollout: Rollout) -> Tensor:
        return a3c_terms(method, net, rollout, 0.2, method.config)["policy_kl"]

    assert float(policy_kl(collector.collect()).detach()) == 0.0, "there is no previous iteration yet"
    for _ in range(2):
        old, new = (make_method(link_heads="never").build(SPEC, [expert]) for _ in range(2))
        old.load_state_dict(net.state_dict())
        randomise(net)
        new.load_state_dict(net.state_dict())
        rollout = collector.collect()
        term = policy_kl(rollout)

        first = rollout.obs[0]
        assert len(first) == envs
        expected = coefficient * t_max * kl(new(first)[0], old(first)[0]).sum() / envs
        assert expected > 1e-3
        assert term.item() == pytest.approx(expected, rel=1e-4)

        log_p = new(first)[0].log_softmax(1)
        log_q = old(first)[0].detach().log_softmax(1)
        same = coefficient * t_max * F.kl_div(log_q, log_p, reduction="sum", log_target=True) / envs
        ours, theirs = (gradients(loss, list(module.parameters())) for loss, module in ((term, net), (same, new)))
        norms = [float(g.norm()) for g in ours if g is not None]
        assert len(norms) == len(ours) - 2, "all but the value head take part"
        assert min(norms) > 0
        for g, want in zip(ours, theirs, strict=True):
            if g is not None and want is not None:
                torch.testing.assert_close(g, want, rtol=1e-3, atol=1e-5)


def test_under_ppo_policy_kl_compares_with_the_policy_that_acted(expert: Teacher) -> None:
    method = make_method(policy_kl_coef=0.3)
    net = method.build(SPEC, [expert])
    samples = Samples.of(play_on(method, net, keep_graph=False).collect(), method.config)
    acted = make_method().build(SPEC, [expert])
    acted.load_state_dict(net.state_dict())
    randomise(net)
    picked = samples.pick(torch.tensor([4, 1, 3]))
    term = ppo_terms(method, net, picked, (), 0.2, method.config)["policy_kl"]
    expected = 0.3 * kl(net(picked.obs)[0], acted(picked.obs)[0]).mean()
    assert expected > 1e-3
    assert term.item() == pytest.approx(expected, rel=1e-4)


def test_a_teacher_sees_each_observation_of_a_run_once(expert: Teacher) -> None:
    method = make_method()
    net = method.build(SPEC, [expert])
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    expert.net.register_forward_pre_hook(count)
    collector = play_on(method, net, keep_graph=False)
    for _ in range(4):
        collector.collect()
    # 4 rollouts of 3 steps and what follows the last one, in each environment.
    assert seen == ENVS * (4 * 3 + 1)
    net.handover = 1.0
    assert joined(collector.collect().contexts) == ()
    assert seen == ENVS * 13


def test_policy_kl_goes_on_after_independence(expert: Teacher) -> None:
    method = make_method(policy_kl_coef=1.0)
    net = method.build(SPEC, [expert])
    net.handover = 1.0
    collector = play_on(method, net)
    collector.collect()
    old = net.export()
    randomise(net)
    rollout = collector.collect()
    term = a3c_terms(method, net, rollout, 0.9, method.config)["policy_kl"]
    expected = 3 * kl(net.export()(rollout.obs[0])[0], old(rollout.obs[0])[0]).sum() / ENVS
    assert expected > 1e-3
    assert term.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_the_weight_of_dependence_grows_with_the_run(
    expert: Teacher, obs: Tensor, progress: float, share: float
) -> None:
    method = make_method(dependence_coef=0.2, student_weight=0.25)
    net = method.build(SPEC, [expert])
    # Three steps of two games; each step has the term once.
    term = method.losses(net, play(method, net, obs[:1].repeat(3 * ENVS, 1, 1, 1)), progress)["dependence"]
    assert term.item() == pytest.approx(3 * share * 0.2 * math.log(4), rel=1e-5, abs=1e-9)


def test_dependence_moves_nothing_but_w(expert: Teacher, obs: Tensor) -> None:
    method = make_method()
    net = method.build(SPEC, [expert])
    term = method.losses(net, play(method, net, obs), 0.5)["dependence"]
    weights = list(net.mixing.parameters())
    for gradient in gradients(term, weights):
        assert gradient is not None
        assert gradient[0] < 0 < gradient[1], "a step must raise p of the student"
    others = [*net.student.parameters(), *net.transforms.parameters()]
    assert gradients(term, others) == [None] * len(others)


def test_the_hand_over_pulls_the_student_alone_towards_the_linked_one(expert: Teacher, obs: Tensor) -> None:
    # Four times the same observation: whichever samples the term draws, it is the same by hand.
    method = make_method(handover_coef=0.7)
    net = method.build(SPEC, [expert])
    randomise(net.student)
    randomise(net.transforms)
    batch = play(method, net, obs[:1].repeat(4, 1, 1, 1))
    term = method.losses(net, batch, 0.5)["handover"]

    alone = net.export()
    logits, values = alone(batch.obs)
    distance = (batch.values - values).detach().numpy()
    expected = 0.7 * (kl(batch.logits, logits) + 0.5 * distance**2).sum() / ENVS
    assert expected > 1e-3
    assert term.item() == pytest.approx(expected, rel=1e-4)

    # The gradient of KL[p || softmax(l)] + 1/2 (c - v)^2 for constant p and c is softmax(l) - p, v - c.
    d_logits = torch.from_numpy(softmax(logits) - softmax(batch.logits)).float()
    loss = 0.7 * ((logits * d_logits).sum() - (values * torch.from_numpy(distance)).sum()) / ENVS
    ours = gradients(term, list(net.student.parameters()))
    theirs = gradients(loss, list(alone.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    linked_side = [*net.transforms.parameters(), *net.mixing.parameters()]
    assert gradients(term, linked_side) == [None] * len(linked_side)


def test_during_the_ramp_the_student_learns_from_its_linked_self_of_the_ramps_beginning(
    expert: Teacher, obs: Tensor
) -> None:
    same = obs[:1].repeat(4, 1, 1, 1)
    method = make_method(policy_kl_coef=0.0, handover_memory=1)
    net = method.build(SPEC, [expert])
    randomise(net.student)
    randomise(net.transforms)
    linked_logits, linked_values = (part.detach().clone() for part in net(same))
    net.handover = 0.3
    method.losses(net, play(method, net, same), 0.5)
    randomise(net.student)
    randomise(net.transforms)
    net.handover = 0.9
    term = method.losses(net, play(method, net, same), 0.8)["handover"]
    logits, values = net.export()(same)
    distance = (linked_values - values).detach().numpy()
    expected = 0.1 * (kl(linked_logits, logits) + 0.5 * distance**2).sum() / ENVS  # faded to 1 - 0.9
    assert term.item() == pytest.approx(expected, rel=1e-4)
    assert net.handover == 0.9


def test_a_run_resumed_inside_the_ramp_keeps_its_guide_and_its_score_before_the_ramp(
    expert: Teacher, obs: Tensor
) -> None:
    same = obs[:1].repeat(4, 1, 1, 1)

    def go_on(method: KnowledgeFlowMethod, net: GuidedFlow) -> float:
        method.begin(net, 0, SPEC, 1)
        net.handover = 0.9
        return method.losses(net, play(method, net, same, (20.0,) * 20), 0.8)["handover"].item()

    def make() -> tuple[KnowledgeFlowMethod, GuidedFlow]:
        method = make_method(policy_kl_coef=0.0, handover_memory=1)
        return method, method.build(SPEC, [expert])

    def resume(net: GuidedFlow, *lost: str) -> float:
        method, resumed = make()
        kept = {name: tensor for name, tensor in net.state_dict().items() if name not in lost}
        resumed.load_state_dict(kept, strict=False)
        return go_on(method, resumed)

    method, net = make()
    method.begin(net, 0, SPEC, 1)
    randomise(net.student)
    method.losses(net, play(method, net, same, (100.0,)), 0.4)
    net.handover = 0.3
    method.losses(net, play(method, net, same), 0.5)
    randomise(net.student)
    resumed, without_score, without_guide = resume(net), resume(net, "linked_scores"), resume(net, "guided")
    assert resumed == pytest.approx(without_score * 0.8 / 0.1, rel=1e-4)
    assert resumed != pytest.approx(without_guide, rel=0.1)
    assert go_on(method, net) == pytest.approx(resumed, rel=1e-4), "the uninterrupted run's"


@pytest.mark.parametrize(
    ("linked", "later", "weight"), [(100.0, 20.0, 0.8), (100.0, 300.0, 0.25), (-5.0, -9.0, 0.8), (4.0, 3.9, 0.25)]
)
def test_the_distillation_fades_with_the_ramp_unless_the_student_falls_behind(
    expert: Teacher, obs: Tensor, linked: float, later: float, weight: float
) -> None:
    method = make_method(policy_kl_coef=0.0)
    net = method.build(SPEC, [expert])
    same = obs[:1].repeat(4, 1, 1, 1)
    at_first = method.losses(net, play(method, net, same, (linked,)), 0.5)["handover"]
    net.handover = 0.75
    then = method.losses(net, play(method, net, same, (later,) * 20), 0.8)["handover"]
    assert then.item() == pytest.approx(weight * at_first.item(), rel=1e-4)


def test_the_distillation_fades_when_the_student_turns_from_its_teachers_by_itself(
    expert: Teacher, obs: Tensor
) -> None:
    method = make_method(policy_kl_coef=0.0, student_weight=0.5)
    net = method.build(SPEC, [expert])
    batch = play(method, net, obs[:1].repeat(4, 1, 1, 1))
    at_first = method.losses(net, batch, 0.5)["handover"].item()
    with torch.no_grad():
        for raw in net.mixing.parameters():
            raw.copy_(torch.tensor([0.95, 0.05]).log())
    assert method.losses(net, batch, 0.5)["handover"].item() == pytest.approx(0.1 * at_first, rel=1e-3)
    with torch.no_grad():
        for raw in net.mixing.parameters():
            raw.copy_(torch.tensor([0.2, 0.8]).log())
    assert method.losses(net, batch, 0.5)["handover"].item() == pytest.approx(at_first, rel=1e-3)


def test_the_hand_over_comes_back_to_earlier_rollouts(expert: Teacher) -> None:
    method = make_method(policy_kl_coef=0.0, handover_reuse=3.0)
    net = method.build(SPEC, [expert])
    rollouts = [torch.full((8, 4, 84, 84), index, dtype=torch.uint8) for index in range(2)]
    for rollout in rollouts:
        batch = play(method, net, rollout)
        seen: list[Tensor] = []
        handle = net.student.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        method.losses(net, batch, 0.5)
        handle.remove()
    (studied,) = seen
    assert len(studied) == 24
    assert set(studied[:, 0, 0, 0].tolist()) == {0, 1}


@pytest.mark.parametrize("settings", [{"handover_reuse": 0.01}, {"handover_memory": 1}])
def test_the_smallest_hand_over_settings_train(expert: Teacher, obs: Tensor, settings: dict[str, object]) -> None:
    method = make_method(**settings)
    net = method.build(SPEC, [expert])
    for _ in range(2):
        term = method.losses(net, play(method, net, obs), 0.5)["handover"]
        assert math.isfinite(float(term.detach()))


def test_a_step_on_the_hand_over_brings_the_two_policies_together(expert: Teacher, obs: Tensor) -> None:
    method = make_method()
    net = method.build(SPEC, [expert])
    lean_on_teachers(net, *net.layers)
    with torch.no_grad():
        net.student.policy.weight.mul_(100.0)  # A fresh policy is nearly uniform, which leaves no distance to go.
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    distances = []
    for _ in range(30):
        batch = play(method, net, obs)
        distances.append(kl(batch.logits, net.export()(obs)[0]).sum())
        optimiser.zero_grad()
        method.losses(net, batch, 0.5)["handover"].backward()
        optimiser.step()
    assert distances[-1] < 0.5 * distances[0]


# --- what trains --------------------------------------------------------------------------------------------


def names_of(net: nn.Module, parameters: Sequence[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


def test_w_has_its_own_learning_rate(expert: Teacher) -> None:
    method = make_method(layer_weights_lr=25.0)
    net = method.build(SPEC, [expert])
    body, weights = method.parameter_groups(net)
    assert (body.lr_scale, weights.lr_scale) == (1.0, 25.0)
    assert names_of(net, weights.parameters) == [
        f"mixing.raw.{layer}" for layer in ("conv1", "conv2", "fc", "policy", "value")
    ]
    rest = [name for name, _ in net.named_parameters() if not name.startswith("mixing.")]
    assert names_of(net, body.parameters) == rest
    assert {name.split(".")[0] for name in rest} == {"student", "transforms"}


def test_no_teacher_is_in_the_optimiser(expert: Teacher, stranger: Teacher) -> None:
    method = make_method()
    groups = method.parameter_groups(method.build(SPEC, [expert, stranger]))
    trained = {id(parameter) for group in groups for parameter in group.parameters}
    frozen = [parameter for t in (expert, stranger) for parameter in t.net.parameters()]
    assert not any(id(parameter) in trained or parameter.requires_grad for parameter in frozen)


def test_the_reproductions_variant_keeps_q_and_puts_p_back_on_the_simplex(expert: Teacher, obs: Tensor) -> None:
    method = make_method(mixing="simplex", layer_weights_lr=3.0, handover_coef=0.0)
    net = method.build(SPEC, [expert])
    body, weights = method.parameter_groups(net)
    assert not any("transforms" in name for name in names_of(net, body.parameters))
    assert not any(parameter.requires_grad for parameter in net.transforms.parameters())
    assert net.mixing("fc").tolist() == pytest.approx([0.1 / 1.1, 1 / 1.1])
    assert len(weights.parameters) == 5
    q = [parameter.clone() for parameter in net.transforms.parameters()]
    optimiser = torch.optim.SGD([*body.parameters, *weights.parameters], lr=0.5)
    batch = play(method, net, obs)
    (batch.logits.sum() + batch.values.sum()).backward()
    optimiser.step()
    assert any(abs(sum(p.tolist()) - 1.0) > 1e-3 for p in weights.parameters)
    method.after_update(net, 0.5)
    for p in weights.parameters:
        assert sum(p.tolist()) == pytest.approx(1.0, abs=1e-6)
        assert min(p.tolist()) >= 0
    assert all(torch.equal(old, new) for old, new in zip(q, net.transforms.parameters(), strict=True))


# --- what comes out -----------------------------------------------------------------------------------------


def test_metrics_tell_p_of_every_layer(expert: Teacher, stranger: Teacher) -> None:
    method = make_method(link_heads="never", student_weight=0.5)
    net = method.build(SPEC, [expert, stranger])
    net.handover = 0.5
    expected = {f"flow/p_student/{layer}": 0.75 for layer in ("conv1", "conv2", "fc")}
    for name in ("breakout", "seaquest"):
        expected |= {f"flow/p_teacher/{name}/{layer}": 0.125 for layer in ("conv1", "conv2", "fc")}
    assert method.metrics(net) == pytest.approx(expected)


def test_metrics_add_up_to_one_in_every_layer(expert: Teacher, stranger: Teacher) -> None:
    links = tuple(
        LinkConfig("fc", name, layer) for name, layer in (("breakout", "fc"), ("breakout", "conv3"), ("seaquest", "fc"))
    )
    method = make_method(links=links)
    net = method.build(SPEC, [expert, stranger])
    randomise(net.mixing)
    logged = method.metrics(net)
    assert set(logged) == {"flow/p_student/fc", "flow/p_teacher/breakout/fc", "flow/p_teacher/seaquest/fc"}
    assert sum(logged.values()) == pytest.approx(1.0)
    p = net.layer_weights("fc").tolist()
    assert logged["flow/p_teacher/breakout/fc"] == pytest.approx(p[1] + p[2])


def test_the_export_is_a_plain_net(expert: Teacher, obs: Tensor) -> None:
    method = make_method()
    net = method.build(SPEC, [expert])
    exported = method.export(net)
    plain = AtariNet(4, ((4, 8, 8), (4, 4, 2)), 8)
    plain.load_state_dict(exported.state_dict())
    assert torch.equal(exported(obs)[0], plain(obs)[0])
    assert not torch.equal(exported(obs)[0], net(obs)[0])
