import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stable_baselines3 import PPO
from torch import Tensor, nn

from agents.batch import Batch, Rollout, joined
from agents.config import TrainConfig
from agents.engines.settings import PPOConfig
from agents.engines.shared import untrained
from agents.methods.base import NetSpec
from agents.methods.knowledge_flow import FlowNet, KnowledgeFlowMethod
from agents.objective import Samples, a3c_terms, ppo_terms, with_gradient
from agents.rollout import Collector
from agents.teachers.formats import Card, Teacher, save_agent
from agents.teachers.store import load_teachers
from envs.atari import ALL_ACTIONS, AtariEnvs, Episode, identify
from envs.protocols import get_protocol
from kfrl.config import load_config
from kfrl.errors import UserError
from kfrl.flow import KnowledgeFlow, Link
from kfrl.losses.actor_critic import n_step_returns
from kfrl.nets.atari.net import AtariNet

SPEC = NetSpec("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"))
OTHER_ACTIONS = ("FIRE", "UP", "LEFT", "NOOP", "RIGHT")
"""The student's actions in another order, and one that it lacks."""
BODY = [("conv1", "conv1"), ("conv2", "conv3"), ("fc", "fc")]
HEADS = [("policy", "policy"), ("value", "value")]
ENVS = 2


def make_method(protocol: str = "paper", **flow: object) -> KnowledgeFlowMethod:
    return KnowledgeFlowMethod(
        TrainConfig(
            protocol=protocol,
            convs=((4, 8, 8), (4, 4, 2)),
            hidden=8,
            methods={"knowledge-flow": {**{"student_weight": 0.25, "fold_at": 0.1, **flow}}},
        )
    )


@pytest.fixture
def expert(teacher: Callable[..., Teacher]) -> Teacher:
    """Of the same game, with another shape and its actions in another order."""
    return teacher(AtariNet(5, ((5, 8, 8), (4, 3, 1), (3, 3, 1)), 6), OTHER_ACTIONS)


def scored(expert: Teacher, mean: float, protocol: str = "paper") -> Teacher:
    """With a score on its card, under some rules of play."""
    rules = get_protocol(protocol, "breakout").to_dict()
    return replace(expert, card=replace(expert.card, evaluation={"mean": mean, "protocol": rules}))


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
    context = method.features(net, obs)
    episodes = tuple(Episode(0, score, 1, False) for score in scores)
    output, actions = method.forward(net, obs, context), torch.zeros(len(obs), dtype=torch.int64)
    return Batch(obs, (context,), actions, output, episodes, num_envs=ENVS)


def terms_of(method: KnowledgeFlowMethod, net: FlowNet, rollout: Rollout, progress: float) -> dict[str, Tensor]:
    return a3c_terms(method, net, with_gradient(method, net, rollout), progress, method.config)


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
    links = method.build(SPEC, teachers).flow.links
    return [(link.student, link.layer) for link in links if link.teacher == name]


def test_heads_are_linked_to_a_teacher_of_the_same_game(expert: Teacher, stranger: Teacher) -> None:
    teachers = [stranger, expert]
    assert linked(make_method(), teachers, "breakout") == BODY + HEADS
    assert linked(make_method(), teachers, "seaquest") == [("conv1", "conv1"), ("conv2", "conv1"), ("fc", "fc")]


def test_a_stranger_beside_an_expert_is_linked_only_where_its_links_are_trained_or_asked_for(
    expert: Teacher, stranger: Teacher
) -> None:
    method = make_method(fold_at=0.0)
    assert linked(method, [stranger, expert], "seaquest") == []
    net = method.build(SPEC, [stranger, expert])
    assert net.flow.links == method.build(SPEC, [expert]).flow.links
    # It is not run either.
    assert list(net.flow.teachers) == ["breakout"]
    method.build(SPEC, [stranger, expert])
    words = "Teacher seaquest is not linked: it plays another game than breakout"
    assert sum(note.startswith(words) for note in method.notes(net)) == 1
    links = (Link("fc", "seaquest", "fc"),)
    cases: list[dict[str, Any]] = [{"fold_at": 0.1}, {"fold_at": None}, {"link_heads": "always"}, {"links": links}]
    for asked in cases:
        assert linked(make_method(**{"fold_at": 0.0, **asked}), [stranger, expert], "seaquest"), asked
    assert linked(method, [stranger], "seaquest")
    assert not any("is not linked: it plays another" in note for note in method.notes(net))


def test_a_teacher_of_another_flavour_is_an_expert_after_one_of_the_runs_own(expert: Teacher) -> None:
    other = replace(expert, name="other", card=replace(scored(expert, 3.0).card, game="breakout:m12d0"))
    method = make_method()
    assert linked(method, [other], "other") == BODY + HEADS
    assert [phase.title for phase in method.phases(SPEC, [other])] == ["linked", "imitation", "alone"]
    # The score is of another game, so it says nothing.
    method = make_method()
    net = staged(method, other, 2)
    method._shortfall.count([2.0])
    assert method._shortfall.share() == 1.0
    assert "Teacher other has its score in another flavour, Breakout:m12d0: how far" in " ".join(method.notes(net))
    method.build(SPEC, [other, expert])
    assert method._expert is expert


def test_heads_may_be_linked_to_no_teacher_or_to_all(expert: Teacher, stranger: Teacher) -> None:
    never, always = make_method(link_heads="never"), make_method(link_heads="always")
    assert linked(never, [stranger, expert], "breakout") == BODY
    for name in ("breakout", "seaquest"):
        assert linked(always, [stranger, expert], name)[3:] == HEADS


def test_strangers_alone_are_linked_by_their_policies_if_asked_where_the_fold_is_at_the_start(
    expert: Teacher, stranger: Teacher, teacher: Callable[..., Teacher]
) -> None:
    def of(game: str, *actions: str) -> Teacher:
        return teacher(AtariNet(len(actions), ((2, 8, 8),), 7), actions, game=game)

    same, same_too = of("seaquest", *reversed(SPEC.actions)), of("pong", *SPEC.actions)
    more, fewer = of("alien", *SPEC.actions, "DOWN"), of("freeway", *SPEC.actions[:-1])

    def heads(teachers: list[Teacher], **flow: object) -> list[tuple[str, str]]:
        links = make_method(**flow).build(SPEC, teachers).flow.links
        return [(link.teacher, link.layer) for link in links if link.student in ("policy", "value")]

    both, start = [same, same_too], {"fold_at": 0.0, "link_heads": "policies"}
    assert heads(both, **start) == [("seaquest", "policy"), ("pong", "policy")]
    # A policy over other actions is not linked: the student would have a part of it.
    method = make_method(**start)
    net = method.build(SPEC, [more, same, fewer])
    assert [link.teacher for link in net.flow.links if link.student == "policy"] == ["seaquest"]
    said = [
        f"Teacher {name}'s policy is not linked: its actions are not those of breakout."
        for name in ("alien", "freeway")
    ]
    assert list(method.notes(net)[:2]) == said
    assert heads([stranger, expert], **start) == [("breakout", "policy"), ("breakout", "value")]
    assert heads(both, fold_at=0.0) == []
    # What follows is linked or imitates, and was not measured so.
    assert heads(both, fold_at=0.1, link_heads="policies") == []
    assert heads(both, imitate="always", **start) == []


@pytest.mark.parametrize("link_heads", ["expert", "policies", "always"])
def test_a_value_head_that_was_never_trained_is_not_linked(expert: Teacher, link_heads: str) -> None:
    distilled = replace(expert, card=replace(expert.card, trains_value=False))
    method = make_method(link_heads=link_heads)
    net = method.build(SPEC, [distilled])
    assert [(link.student, link.layer) for link in net.flow.links] == [*BODY, ("policy", "policy")]
    assert method.notes(net)[0] == "Teacher breakout's value head was never trained, so it is not linked."
    trained = make_method(link_heads=link_heads)
    assert not any("value head" in note for note in trained.notes(trained.build(SPEC, [expert])))


def test_links_may_be_given_by_name(expert: Teacher) -> None:
    links = (Link("fc", "breakout", "conv2"),)
    assert linked(make_method(links=links), [expert], "breakout") == [("fc", "conv2")]


def test_the_student_is_the_configured_net(expert: Teacher) -> None:
    student = make_method().build(SPEC, [expert]).alone
    assert isinstance(student, AtariNet)
    assert student.arch["convs"] == [[4, 8, 8], [4, 4, 2]]
    assert (student.fc.out_features, student.policy.out_features) == (8, 4)


def lean_on_teachers(net: KnowledgeFlow, *layers: str) -> None:
    """p of the student about 1e-26 in these layers."""
    with torch.no_grad():
        for layer in layers:
            net.mixing.get_parameter(f"raw.{layer}")[0] = -60.0


def test_actions_meet_by_meaning(expert: Teacher, obs: Tensor) -> None:
    net = make_method().build(SPEC, [expert]).flow
    lean_on_teachers(net, "policy", "value")
    logits, values = net(obs)
    theirs, their_values = expert.net(obs)
    order = [OTHER_ACTIONS.index(action) for action in SPEC.actions]
    assert order == [3, 0, 4, 2]
    torch.testing.assert_close(logits, theirs[:, order])
    torch.testing.assert_close(values, their_values)


def test_an_action_that_the_teacher_lacks_gets_nothing_from_it(stranger: Teacher, obs: Tensor) -> None:
    net = make_method(link_heads="always").build(SPEC, [stranger]).flow
    lean_on_teachers(net, "policy")
    logits, theirs = net(obs)[0], stranger.net(obs)[0]
    expected = torch.stack([theirs[:, 0], theirs[:, 1], torch.zeros(2), torch.zeros(2)], 1)
    torch.testing.assert_close(logits, expected)


def test_each_teacher_of_several_has_its_own_actions(
    teacher: Callable[..., Teacher], small_net: Callable[[int], AtariNet], obs: Tensor
) -> None:
    first = teacher(small_net(4), ("NOOP", "FIRE", "RIGHT", "LEFT"))
    second = teacher(small_net(4), ("LEFT", "RIGHT", "FIRE", "NOOP"), name="breakout-2")
    net = make_method(student_weight=1e-9).build(SPEC, [first, second]).flow
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
    net = KnowledgeFlowMethod(TrainConfig(methods={"knowledge-flow": {"link_heads": "always"}})).build(SPEC, shelf).flow
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
            ("conv2", teacher): ("conv2", (64, 9, 9), "Conv1x1", 32 * 64),
            ("fc", teacher): ("fc", (512,), "Dense", 256 * 512),
            ("policy", teacher): ("policy", (actions,), "Dense", 4 * actions),
        }
    expected |= {("value", name): ("value", (1,), "Dense", 1) for name in ("seaquest", "breakout", "pong")}
    found = {key: (row.link.layer, row.teacher_shape, row.transform, row.parameters) for key, row in table.items()}
    assert found == expected
    assert net(obs)[0].shape == (2, 4)


def test_each_of_them_reaches_the_linked_student_and_not_the_lone_one(shelf: tuple[Teacher, ...], obs: Tensor) -> None:
    net = KnowledgeFlowMethod(TrainConfig(methods={"knowledge-flow": {"fold_at": 0.1}})).build(SPEC, shelf)
    alone = net.alone(obs)[0]
    for teacher in shelf:
        for layer in ("conv1", "fc"):
            before, weight = net.flow(obs)[0], teacher.net.get_parameter(f"{layer}.weight")
            weight.add_(0.1 * torch.randn_like(weight))
            assert not torch.allclose(net.flow(obs)[0], before), f"{teacher.name} {layer}"
    assert torch.equal(net.alone(obs)[0], alone)


def test_a_q_teacher_of_the_same_game_is_linked_at_its_heads(obs: Tensor, teacher: Callable[..., Teacher]) -> None:
    q = teacher(AtariNet(5, ((5, 8, 8), (4, 3, 1), (3, 3, 1)), 6, head="q"), OTHER_ACTIONS)
    net = make_method().build(SPEC, [q]).flow
    lean_on_teachers(net, "policy", "value")
    theirs, their_values = q.net(obs)
    logits, values = net(obs)
    torch.testing.assert_close(logits, theirs[:, [3, 0, 4, 2]])
    torch.testing.assert_close(values, their_values)


# --- acting -------------------------------------------------------------------------------------------------


def test_what_was_observed_is_what_forward_would_compute(expert: Teacher, obs: Tensor) -> None:
    method = make_method()
    net = method.build(SPEC, [expert])
    context = method.features(net, obs)
    assert len(context) == 5
    output = method.forward(net, obs, context)
    for cached, computed in zip((output.logits, output.values), net.flow(obs), strict=True):
        assert torch.equal(cached, computed)


# --- losses -------------------------------------------------------------------------------------------------


def test_the_terms_of_the_objective(expert: Teacher, obs: Tensor) -> None:
    def terms(stage: int, **flow: object) -> set[str]:
        method = make_method(imitation_memory=64, **flow)
        net = method.build(SPEC, [expert])
        method.begin(net, stage, SPEC, rank=0)
        return set(method.losses(net, play(method, net, obs), 0.5))

    assert terms(0) == {"policy_kl", "dependence"}
    assert terms(0, policy_kl_coef=0.0) == {"dependence"}
    assert terms(1) == {"imitation"}
    assert terms(2) == {"policy_kl"}


def test_hidden_features_are_matched_wherever_they_go_and_logits_are_not(expert: Teacher, obs: Tensor) -> None:
    def scales(layer: str, *links: Link, **flow: object) -> list[float]:
        method = make_method(links=links, **{"match_scales": True, **flow})
        net = method.build(SPEC, [expert])
        list(method.prepare(net, lambda count, policy=None: obs))
        scales: list[float] = net.flow.get_buffer(f"scales.{layer}").tolist()
        return scales

    to_head = Link("policy", "breakout", "fc")
    both = scales("policy", to_head, Link("policy", "breakout", "policy"))
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
        return terms_of(method, net, rollout, 0.2)["policy_kl"]

    assert float(policy_kl(collector.collect()).detach()) == 0.0, "there is no previous iteration yet"
    for _ in range(2):
        old, new = (make_method(link_heads="never").build(SPEC, [expert]) for _ in range(2))
        old.load_state_dict(net.state_dict())
        randomise(net)
        new.load_state_dict(net.state_dict())
        rollout = collector.collect()
        term = policy_kl(rollout)

        first = rollout.obs[:envs]
        expected = coefficient * t_max * kl(new.flow(first)[0], old.flow(first)[0]).sum() / envs
        assert expected > 1e-3
        assert term.item() == pytest.approx(expected, rel=1e-4)

        log_p = new.flow(first)[0].log_softmax(1)
        log_q = old.flow(first)[0].detach().log_softmax(1)
        same = coefficient * t_max * F.kl_div(log_q, log_p, reduction="sum", log_target=True) / envs
        ours, theirs = (gradients(loss, list(module.flow.parameters())) for loss, module in ((term, net), (same, new)))
        norms = [float(g.norm()) for g in ours if g is not None]
        assert len(norms) == len(ours) - 2, "all but the value head take part"
        assert min(norms) > 0
        for g, want in zip(ours, theirs, strict=True):
            if g is not None and want is not None:
                torch.testing.assert_close(g, want, rtol=1e-3, atol=1e-5)


def test_the_share_of_policy_kl_in_the_policys_gradient_is_measured(expert: Teacher) -> None:
    method = make_method(policy_kl_coef=0.3)
    net = method.build(SPEC, [expert])
    collector = play_on(method, net, keep_graph=False)
    first = with_gradient(method, net, collector.collect())
    assert method.measure(first, a3c_terms(method, net, first, 0.2, method.config)) == {"flow/policy_kl_share": 0.0}
    randomise(net)
    rollout = with_gradient(method, net, collector.collect())
    terms = a3c_terms(method, net, rollout, 0.2, method.config)
    logits = net.flow(rollout.obs)[0].detach().requires_grad_()
    values = net.flow(rollout.obs)[1].detach()
    # d KL[p || q] / d logits = p (log p - log q - KL), on the first of three steps, three times, over two games.
    log_p = logits[:ENVS].detach().log_softmax(1)
    gap = log_p - rollout.previous_logits.log_softmax(1) if rollout.previous_logits is not None else log_p
    by_hand = 0.3 * 3 / ENVS * log_p.exp() * (gap - (log_p.exp() * gap).sum(1, keepdim=True))
    returns = n_step_returns(
        rollout.rewards, rollout.terminated, rollout.truncated, rollout.truncated_values, rollout.bootstrap, 0.99
    ).flatten()
    chosen = logits.log_softmax(1).gather(1, rollout.actions[:, None]).squeeze(1)
    (policy,) = torch.autograd.grad(-(chosen * (returns - values)).sum() / ENVS, logits)
    share = method.measure(rollout, terms)["flow/policy_kl_share"]
    assert share == pytest.approx(float(by_hand.norm() / policy.norm()), rel=1e-3)


def test_under_ppo_policy_kl_compares_with_the_policy_that_acted(expert: Teacher) -> None:
    method = make_method(policy_kl_coef=0.3)
    net = method.build(SPEC, [expert])
    played = play_on(method, net, keep_graph=False).collect()
    samples = Samples.of(played, played.rewards, method.config)
    acted = make_method().build(SPEC, [expert])
    acted.load_state_dict(net.state_dict())
    randomise(net)
    picked = with_gradient(method, net, samples.pick(torch.tensor([4, 1, 3])))
    term = ppo_terms(method, net, picked, 0.2, method.config)["policy_kl"]
    expected = 0.3 * kl(net.flow(picked.obs)[0], acted.flow(picked.obs)[0]).mean()
    assert expected > 1e-3
    assert term.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("stage", [0, 2])
def test_theta_old_is_as_old_as_it_is_told_and_compared_on_all_samples(expert: Teacher, stage: int) -> None:
    method = make_method(policy_kl_coef=0.3, policy_kl_every=2)
    net = staged(method, expert, stage)
    collector = play_on(method, net, keep_graph=False)
    acts = net.flow if stage == 0 else net.alone
    old = {name: tensor.clone() for name, tensor in acts.state_dict().items()}
    assert terms_of(method, net, collector.collect(), 0.2)["policy_kl"] == 0.0
    for update in range(3):
        method.after_update(net, 0.2)  # the first and the third take theta_old
        if update == 2:
            old = {name: tensor.clone() for name, tensor in acts.state_dict().items()}
        randomise(acts)
        rollout = collector.collect()
        term = terms_of(method, net, rollout, 0.2)["policy_kl"]
        obs = rollout.obs
        with torch.no_grad():
            now = acts(obs)[0]
            held = {name: tensor.clone() for name, tensor in acts.state_dict().items()}
            acts.load_state_dict(old)
            before = acts(obs)[0]
            acts.load_state_dict(held)
        expected = 0.3 * 3 * kl(now, before).mean()
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
    method.begin(net, 2, SPEC, rank=0)
    assert joined(play_on(method, net).collect().contexts) == ()
    assert seen == ENVS * 13


def test_policy_kl_goes_on_when_the_student_is_alone(expert: Teacher) -> None:
    method = make_method(policy_kl_coef=1.0)
    net = method.build(SPEC, [expert])
    net = staged(method, expert, 2)
    collector = play_on(method, net)
    collector.collect()
    old = method.export(net)
    randomise(net)
    rollout = collector.collect()
    term = terms_of(method, net, rollout, 0.9)["policy_kl"]
    expected = 3 * kl(method.export(net)(rollout.obs[:ENVS])[0], old(rollout.obs[:ENVS])[0]).sum() / ENVS
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


def test_the_reproductions_loss_has_l_dep_in_full_from_the_start(expert: Teacher, obs: Tensor) -> None:
    reproduction = load_config(Path(__file__).parents[3] / "configs/atari/reproduction.yaml", TrainConfig)
    method = make_method(**reproduction.methods["knowledge-flow"])
    net = method.build(SPEC, [expert])
    terms = method.losses(net, play(method, net, obs[:1].repeat(3 * ENVS, 1, 1, 1)), 0.0)
    # p of the student is 0.1 / 1.1 at each layer, and a rollout has three steps.
    assert terms["dependence"].item() == pytest.approx(3 * math.log(11))


def test_dependence_moves_nothing_but_w(expert: Teacher, obs: Tensor) -> None:
    method = make_method()
    net = method.build(SPEC, [expert])
    term = method.losses(net, play(method, net, obs), 0.5)["dependence"]
    weights = list(net.flow.mixing.parameters())
    for gradient in gradients(term, weights):
        assert gradient is not None
        assert gradient[0] < 0 < gradient[1], "a step must raise p of the student"
    others = [*net.flow.student.parameters(), *net.flow.transforms.parameters()]
    assert gradients(term, others) == [None] * len(others)


# --- the phases of a run ------------------------------------------------------------------------------------


def staged(method: KnowledgeFlowMethod, expert: Teacher, stage: int) -> FlowNet:
    net = method.build(SPEC, [expert])
    randomise(net.flow)
    if stage:
        for r2 in net.fold_r2.buffers():
            r2.fill_(0.9)
    method.begin(net, stage, SPEC, rank=0)
    return net


def test_the_phases_share_the_runs_steps_with_the_play_of_the_fold(
    expert: Teacher, stranger: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.observations.GAMES", 32)

    def phases(*teachers: Teacher, steps: int = 200_000, **flow: object) -> list[tuple[str, int]]:
        config = TrainConfig(steps=steps, methods={"knowledge-flow": {"fold_observations": 5_000, **flow}})
        return [(phase.title, phase.steps) for phase in KnowledgeFlowMethod(config).phases(SPEC, teachers)]

    # 4 x 512 and 4 x 5,024 (a multiple of 32 games) steps are played for choice and fold: 177,856 are left.
    assert phases(expert, fold_at=0.1) == [("linked", 17_786), ("imitation", 100_000), ("alone", 60_070)]
    assert phases(expert, fold_at=0.1, imitation_steps=5_000)[1:] == [("imitation", 5_000), ("alone", 155_070)]
    assert phases(expert, fold_at=0.0) == [("imitation", 100_000), ("alone", 77_856)]
    assert phases(stranger, fold_at=0.5) == [("linked", 88_928), ("alone", 88_928)]
    assert phases(stranger, expert, fold_at=0.0, imitate="never") == [("alone", 177_856)]
    assert [title for title, _ in phases(stranger, fold_at=0.1, imitate="always")] == ["linked", "imitation", "alone"]
    assert phases(expert, fold_at=0.0, choose_channels=False) == [("imitation", 100_000), ("alone", 79_904)]
    assert phases(expert, fold_at=None) == [("linked", 197_952)]
    assert phases(expert, fold_at=None, choose_channels=False) == [("linked", 200_000)]
    assert phases(expert, fold_at=None, choose_channels=False, match_scales=True) == [("linked", 197_952)]
    with pytest.raises(UserError, match=r"--steps 22,000: .* Give --steps 22,145 or more"):
        phases(expert, steps=22_000)
    with pytest.raises(UserError, match=r"--steps 2,000: .* 2,048 steps.* Give --steps 2,049 or more"):
        phases(expert, steps=2_000, fold_at=None)
    with pytest.raises(UserError, match=r"--fold-at 1 leaves no step after the fold. Give at most 0.9, or None"):
        phases(expert, fold_at=1.0)


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        ({"fold_at": 0.0, "dependence_coef": 0.5}, r"--dependence-coef 0.5 has no effect.* no linked phase.*--fold-at"),
        ({"fold_at": 0.0, "layer_weights_lr": None}, r"--layer-weights-lr None has no effect"),
        ({"kl_direction": "reverse"}, r"--kl-direction reverse has no effect.*no imitation.*--imitate always"),
        (
            {"fold_at": None, "kickstart_coef": 2.0, "imitation_lr": 0.1},
            r"--imitation-lr 0.1, --kickstart-coef 2.0 have",
        ),
        ({"fold_at": None, "fold_observations": 100}, r"--fold-observations 100 has no effect.*stays linked"),
        ({"fold_at": None, "imitate": "always"}, r"--imitate always has no effect.*stays linked"),
        ({"review_games": 5, "review_every": 10}, r"--review-every 10, --review-games 5 have .*--linked-teachers"),
        ({"policy_kl_every": 5, "policy_kl_coef": 0.0}, r"--policy-kl-every 5 has no effect.*--policy-kl-coef is 0"),
        ({"transform_rank": 8}, r"--transform-rank 8 has no effect.*--transform low-rank"),
        ({"fold_at": 0.0, "fold_observations": 0}, r"--fold-observations 0 leaves the teachers without effect"),
    ],
)
def test_a_setting_of_a_phase_that_the_run_lacks_is_refused(
    stranger: Teacher, flow: dict[str, object], words: str
) -> None:
    method = make_method(**flow)
    method.build(SPEC, [stranger])
    with pytest.raises(UserError, match=words):
        method.check_used()


def test_a_student_that_stays_linked_says_so_and_one_that_is_folded_does_not(stranger: Teacher) -> None:
    def caveat(fold_at: float | None) -> str:
        method = make_method(fold_at=fold_at)
        return method.caveat(method.build(SPEC, [stranger]))

    assert "Warning: this student is not independent" in caveat(None)
    assert "--fold-at 0 does so in the run" in caveat(None)
    # A run that is stopped before its fold leaves a linked student too.
    assert "Warning: this student is not independent" in caveat(0.1)
    assert "so does the run, resumed" in caveat(0.1)
    method = make_method(fold_at=0.1)
    net = method.build(SPEC, [stranger])
    net.leave_fresh()
    assert method.caveat(net) == ""


def test_a_weight_of_0_may_be_given_for_a_term_that_the_run_lacks(stranger: Teacher) -> None:
    method = make_method(fold_at=0.0, dependence_coef=0.0, kickstart_coef=0.0)
    method.build(SPEC, [stranger])
    method.check_used()


def test_a_rollout_of_the_imitation_brings_as_much_play_as_an_update_of_it_needs(expert: Teacher) -> None:
    def t_max(envs: int, **flow: object) -> int | None:
        config = TrainConfig(envs_per_worker=envs, methods={"knowledge-flow": {**flow}})
        return KnowledgeFlowMethod(config).phases(SPEC, [expert])[0].t_max

    assert [t_max(envs) for envs in (1, 8, 32, 100)] == [32, 4, 1, 1]
    assert t_max(8, imitation_batch=64, imitation_samples=2) == 4


def test_the_rate_of_the_imitation_is_its_own_and_starts_at_nothing(expert: Teacher) -> None:
    method = make_method(imitation_lr=0.02)
    net = staged(method, expert, 1)
    net.fold_r2.get_buffer("policy").fill_(0.5)
    (group,) = method.parameter_groups(net)
    imitation = method.phases(SPEC, [expert])[1]
    lr = [method.config.shape.lr * group.lr_scale * imitation.lr_share(at) for at in (0.0, 0.025, 0.05, 0.5, 1.0)]
    assert lr == pytest.approx([0.0, 0.02 * 0.5 * 0.975, 0.02 * 0.95, 0.01, 0.0])
    assert {id(p) for p in group.parameters} == {id(p) for p in net.alone.parameters()}


@pytest.mark.parametrize(("r2", "share"), [(0.6, 1.0), (0.8, 1.0), (0.9, 0.5), (0.999, 0.005)])
def test_the_imitation_is_slow_where_the_fold_left_little_to_learn(expert: Teacher, r2: float, share: float) -> None:
    method = make_method(imitation_lr=0.02)
    net = staged(method, expert, 1)
    for buffer in net.fold_r2.buffers():
        buffer.fill_(0.5)
    net.fold_r2.get_buffer("policy").fill_(r2)
    (group,) = method.parameter_groups(net)
    assert method.config.shape.lr * group.lr_scale == pytest.approx(0.02 * share, rel=1e-3)


def test_only_the_net_of_the_phase_trains(expert: Teacher) -> None:
    def trained(stage: int) -> set[str]:
        net = staged(make_method(), expert, stage)
        return {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}

    assert [trained(stage) for stage in range(3)] == [{"flow"}, {"alone"}, {"alone"}]


def test_the_imitation_pulls_the_lone_student_towards_the_linked_one(expert: Teacher, obs: Tensor) -> None:
    # The same observation throughout: whichever samples the term draws, it is the same by hand.
    method = make_method(imitation_value_coef=0.3, imitation_memory=128, imitation_batch=5)
    net = staged(method, expert, 1)
    same = obs[:1].repeat(4, 1, 1, 1)
    term = method.losses(net, play(method, net, same), 0.5)["imitation"]
    guide_logits, guide_values = net.flow(same)
    logits, values = net.alone(same)
    distance = (guide_values - values).detach().numpy()
    expected = kl(guide_logits, logits).mean() + 0.3 * (distance**2).mean()
    assert expected > 1e-3
    assert term.item() == pytest.approx(expected, rel=1e-4)

    # The gradient of KL[p || softmax(l)] + c (g - v)^2 for constant p and g is softmax(l) - p, 2 c (v - g).
    d_logits = torch.from_numpy(softmax(logits) - softmax(guide_logits)).float()
    loss = ((logits * d_logits).sum(1) - 0.6 * values * torch.from_numpy(distance)).mean()
    ours, theirs = (gradients(value, list(net.alone.parameters())) for value in (term, loss))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    flow = list(net.flow.parameters())
    assert not any(parameter.requires_grad for parameter in flow)


@pytest.mark.parametrize(("fold_at", "trained"), [(0.0, False), (0.1, True)])
def test_the_imitation_fits_no_value_head_that_nothing_has_trained(
    expert: Teacher, obs: Tensor, fold_at: float, trained: bool
) -> None:
    distilled = replace(expert, card=replace(expert.card, trains_value=False))
    method = make_method(fold_at=fold_at, imitation_value_coef=0.3, imitation_memory=128, imitation_batch=5)
    net = staged(method, distilled, 1 if fold_at else 0)
    assert method.stage == "imitation"
    same = obs[:1].repeat(4, 1, 1, 1)
    term = method.losses(net, play(method, net, same), 0.5)["imitation"]
    (gradient,) = gradients(term, [net.alone.get_parameter("value.weight")])
    assert (gradient is not None and bool(gradient.any())) == trained
    untold = ", and the imitation fits the policy alone: --imitation-value-coef has no effect"
    assert method.notes(net)[0].endswith("is not linked." if trained else f"is not linked{untold}.")


def test_imitation_and_kickstart_may_turn_the_divergence(expert: Teacher, obs: Tensor) -> None:
    method = make_method(imitation_value_coef=0.0, imitation_memory=128, imitation_batch=5, kl_direction="reverse")
    net = staged(method, expert, 1)
    same = obs[:1].repeat(4, 1, 1, 1)
    expected = kl(net.alone(same)[0], net.flow(same)[0]).mean()
    assert method.losses(net, play(method, net, same), 0.5)["imitation"].item() == pytest.approx(expected, rel=1e-4)
    method.begin(net, 2, SPEC, 0)
    method.schedule(net, 0.0)
    kickstart = method.losses(net, play(method, net, same), 0.0)["kickstart"].item()
    assert kickstart == pytest.approx(4 * expected / ENVS, rel=1e-4)


def test_the_imitation_comes_back_to_earlier_rollouts(expert: Teacher) -> None:
    method = make_method(imitation_memory=1600)
    net = staged(method, expert, 1)
    seen: list[Tensor] = []
    for index in range(2):
        batch = play(method, net, torch.full((8, 4, 84, 84), index, dtype=torch.uint8))
        handle = net.alone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        method.losses(net, batch, 0.5)
        handle.remove()
    # Eight samples for each of the rollout's eight steps.
    assert len(seen[-1]) == 64
    assert set(seen[-1][:, 0, 0, 0].tolist()) == {0, 1}


def test_the_linked_net_shows_what_it_does_in_fewer_and_fewer_games(expert: Teacher) -> None:
    method = make_method()
    net = staged(method, expert, 1)
    theirs, own = torch.zeros(4000, 4), torch.ones(4000, 4)

    def share(progress: float) -> float:
        method.schedule(net, progress)
        method._guided = None
        return 1.0 - float(method.acting_logits(own, (theirs,)).mean())

    torch.manual_seed(0)
    assert [share(progress) for progress in (0.0, 0.125, 0.25, 0.5, 1.0)] == pytest.approx(
        [1.0, 0.75, 0.5, 0.0, 0.0], abs=0.03
    )


def test_who_plays_a_game_changes_about_every_fifty_steps(expert: Teacher) -> None:
    method = make_method()
    net = staged(method, expert, 1)
    method.schedule(net, 0.25)
    torch.manual_seed(0)
    theirs, own = torch.zeros(200, 4), torch.ones(200, 4)
    acted = torch.stack([method.acting_logits(own, (theirs,))[:, 0] for _ in range(400)])
    # A redraw keeps the player half of the time.
    assert float((acted[1:] != acted[:-1]).float().mean()) == pytest.approx(0.5 / 50, rel=0.1)


def test_in_the_other_phases_the_student_acts_by_itself(expert: Teacher) -> None:
    method = make_method()
    for stage in (0, 2):
        staged(method, expert, stage)
        own = torch.rand(3, 4)
        assert torch.equal(method.acting_logits(own, (torch.zeros(3, 4),)), own)


def test_rewards_do_not_count_in_the_imitation(expert: Teacher) -> None:
    method = make_method()
    terms = {"policy": torch.ones(())}
    kept = []
    for stage in range(3):
        staged(method, expert, stage)
        kept.append(method.rl_terms(terms))
    assert kept == [terms, {}, terms]


def test_the_lone_student_follows_the_linked_one_less_and_less(expert: Teacher, obs: Tensor) -> None:
    method = make_method(kickstart_coef=2.0, policy_kl_coef=0.0)
    net = staged(method, expert, 2)

    def weights(progress: float) -> dict[str, float]:
        method.schedule(net, progress)
        batch = play(method, net, obs)
        return {name: float(term.detach()) for name, term in method.losses(net, batch, progress).items()}

    expected = 2.0 * kl(net.flow(obs)[0], net.alone(obs)[0]).sum() / ENVS
    assert expected > 1e-3
    assert weights(0.0)["kickstart"] == pytest.approx(expected, rel=1e-4)
    assert weights(0.375)["kickstart"] == pytest.approx(0.25 * expected, rel=1e-4)
    assert weights(0.5) == weights(0.9) == {}


@pytest.mark.parametrize("keep_graph", [True, False])
def test_a_rollout_in_which_the_linked_net_is_left_has_contexts_of_one_kind(expert: Teacher, keep_graph: bool) -> None:
    expert = scored(expert, 201.7)
    method = make_method()
    net = staged(method, expert, 2)
    collector = play_on(method, net, keep_graph=keep_graph)
    # The student reaches its teacher's score, falls behind again, and then the time is over.
    for progress, latest, followed in ((0.1, 1.7, True), (0.2, 900.0, False), (0.3, 1.7, True), (0.5, 1.7, False)):
        method._shortfall.begin(plays_as_taught=False)
        method._shortfall.count([latest])
        method.schedule(net, progress)
        terms = terms_of(method, net, collector.collect(), progress)
        assert ("kickstart" in terms) == followed


@pytest.mark.parametrize(
    ("scores", "share"),
    [((), 1.0), ((-50.0,), 1.0), ((1.7, 1.7), 1.0), ((101.7,), 0.5), ((151.7, 151.7), 0.25), ((900.0,), 0.0)],
)
def test_the_lone_student_follows_as_far_as_it_is_behind_the_expert(
    expert: Teacher, obs: Tensor, scores: tuple[float, ...], share: float
) -> None:
    # Random play has 1.7 points in Breakout.
    expert = scored(expert, 201.7)
    method = make_method(kickstart_coef=2.0, policy_kl_coef=0.0)
    net = staged(method, expert, 2)
    method.losses(net, play(method, net, obs, scores), 0.0)
    method.schedule(net, 0.125)
    expected = 0.75 * share * 2.0 * kl(net.flow(obs)[0], net.alone(obs)[0]).sum() / ENVS
    terms = method.losses(net, play(method, net, obs), 0.125)
    assert float(terms["kickstart"].detach() if share else 0.0) == pytest.approx(expected, rel=1e-4)
    assert ("kickstart" in terms) == (share > 0.0)


@pytest.mark.parametrize(
    ("policy_r2", "first", "latest", "share"),
    [
        (0.995, 11.7, 11.7, 0.0),
        (0.995, 11.7, 6.7, 0.5),
        (0.995, 1.0, 0.0, 0.0),  # Random play has 1.7 points.
        (0.98, 11.7, 11.7, 1.0),
    ],
)
def test_the_first_games_stand_for_an_unknown_score_where_the_fold_has_the_whole_policy(
    expert: Teacher, obs: Tensor, policy_r2: float, first: float, latest: float, share: float
) -> None:
    method = make_method()
    net = staged(method, expert, 1)
    net.fold_r2.get_buffer("policy").fill_(policy_r2)
    method.begin(net, 2, SPEC, 0)
    method.losses(net, play(method, net, obs, (first,) * 29), 0.0)
    assert method._shortfall.share() == 1.0
    method.losses(net, play(method, net, obs, (first, *(latest,) * 100)), 0.0)
    assert method._shortfall.share() == pytest.approx(share)
    # A run that goes on knows its latest games alone, so it takes the earliest of these.
    method.begin(net, 2, SPEC, 0)
    method.recall(deque((5.0,) * 100))
    assert method._shortfall.share() == (0.0 if policy_r2 > 0.99 else 1.0)


def test_first_games_without_a_point_are_not_worth_following_where_random_plays_score_is_unknown(
    expert: Teacher, obs: Tensor
) -> None:
    # Random play's score under this cap is not known.
    method = make_method(protocol="nature")
    net = staged(method, expert, 1)
    net.fold_r2.get_buffer("policy").fill_(0.995)
    method.begin(net, 2, SPEC, 0)
    method.losses(net, play(method, net, obs, (0.0,) * 30), 0.0)
    assert method._shortfall.share() == 0.0


def test_games_of_an_earlier_phase_do_not_count_for_the_lone_student(expert: Teacher, obs: Tensor) -> None:
    method = make_method()
    net = staged(method, scored(expert, 201.7), 0)
    method.losses(net, play(method, net, obs, (201.7,)), 0.0)
    method.begin(net, 2, SPEC, 0)
    assert method._shortfall.share() == 1.0


@pytest.mark.parametrize(
    ("own", "mean", "theirs", "share", "said"),
    [
        # Random play's 1.7 points have the same cap as the first score, and are left out under the other cap.
        ("paper", 201.7, "paper", 0.5, ""),
        ("nature", 201.7, "nature", 1 - 101.7 / 201.7, ""),
        (
            "nature",
            201.7,
            "paper",
            1.0,
            "has a score with games of at most 108,000 frames, and this run's end after 18,000",
        ),
        (
            "paper",
            201.7,
            "nature",
            1.0,
            "has a score with games of at most 18,000 frames, and this run's end after 108,000",
        ),
        ("nature", -2.0, "nature", 1.0, ""),
        ("paper", -2.0, "paper", 0.0, ""),
    ],
)
def test_scores_under_different_frame_caps_are_not_compared(
    expert: Teacher, own: str, mean: float, theirs: str, share: float, said: str
) -> None:
    method = make_method(protocol=own)
    net = staged(method, scored(expert, mean, theirs), 2)
    method._shortfall.count([101.7])
    assert method._shortfall.share() == pytest.approx(share)
    notes = " ".join(method.notes(net))
    assert said in notes
    assert ("how far the student is behind" in notes) == bool(said)


def test_a_kickstart_to_an_expert_no_better_than_random_play_has_no_effect_and_says_so(expert: Teacher) -> None:
    def notes(mean: float, **flow: object) -> str:
        method = make_method(protocol="paper", **flow)
        return " ".join(method.notes(staged(method, scored(expert, mean, "paper"), 2)))

    # Random play has 1.7 points.
    assert "Teacher breakout scored 1.7, no more than random play" in notes(1.7)
    assert "random play" not in notes(1.8) + notes(1.7, kickstart_coef=0.0)


def test_an_expert_without_a_score_is_named(expert: Teacher) -> None:
    method = make_method()
    assert "Teacher breakout has no score" in " ".join(method.notes(staged(method, expert, 2)))
    unfollowed = make_method(kickstart_coef=0.0)
    assert "score" not in " ".join(unfollowed.notes(staged(unfollowed, expert, 2)))


def test_a_fold_that_has_the_whole_policy_leaves_its_imitations_steps_to_the_learning_alone(expert: Teacher) -> None:
    def steps(policy_r2: float, **flow: object) -> list[int]:
        method = make_method(fold_observations=5_000, **flow)
        net = staged(method, expert, 1)
        net.fold_r2.get_buffer("policy").fill_(policy_r2)
        return [phase.steps for phase in method.fitted_phases(net, method.phases(SPEC, [expert]))]

    linked, imitation, alone = steps(0.5)
    assert imitation > 0
    assert steps(0.98) == steps(math.nan) == [linked, imitation, alone]
    assert steps(0.995) == [linked, 0, imitation + alone]
    assert len(steps(0.995, imitate="never")) == 2


def test_without_a_fold_the_student_imitates_from_fresh_weights(expert: Teacher) -> None:
    method = make_method(fold_observations=0, choose_channels=False)
    net = method.build(SPEC, [expert])
    method.begin(net, 0, SPEC, rank=0)
    fresh = copy.deepcopy(net.alone.state_dict())
    assert list(method.end_phase(net, lambda count, policy=None: pytest.fail("no play is needed"))) == [
        "There is no fold: the lone student starts afresh."
    ]
    assert method.independent(net)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in net.alone.state_dict().items())
    assert sum(phase.steps for phase in method.phases(SPEC, [expert])) == method.config.steps


def test_a_student_of_non_experts_follows_nobody(stranger: Teacher, obs: Tensor) -> None:
    method = make_method()
    net = staged(method, stranger, 1)
    method.schedule(net, 0.0)
    assert set(method.losses(net, play(method, net, obs), 0.0)) == {"policy_kl"}


def test_a_fold_of_the_linked_phase_is_what_the_lone_student_starts_from(expert: Teacher) -> None:
    method = make_method(fold_observations=600, student_weight=0.3)
    net = staged(method, expert, 0)
    observations = torch.randint(0, 256, (600, 4, 84, 84), dtype=torch.uint8)
    asked: list[int] = []

    def game(count: int, policy: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        asked.append(count)
        assert policy is not None
        assert torch.equal(policy(observations[:2]), net.flow(observations[:2])[0])
        return observations

    lines = list(method.end_phase(net, game))
    assert asked == [600]
    assert [line.split()[1] for line in lines if line.startswith("Folded")] == [
        "conv1",
        "conv2",
        "fc",
        "policy",
        "value",
    ]
    logged = method.metrics(net)
    method.begin(net, 1, SPEC, rank=0)
    assert not any(name.startswith("fold/") for name in logged)
    r2 = method.metrics(net)
    assert set(r2) == {f"fold/r2/{layer}" for layer in ("conv1", "conv2", "fc", "policy", "value")}
    # Student and teacher have the same kernel and stride here, so conv1 is exact.
    assert r2["fold/r2/conv1"] == pytest.approx(1.0, abs=1e-3)
    mixed = net.flow.mixture("conv1", observations[:4])
    torch.testing.assert_close(net.alone.get_submodule("conv1")(observations[:4] / 255.0), mixed, atol=2e-2, rtol=1e-2)
    assert list(method.end_phase(net, game)) == []


def test_without_a_linked_phase_the_fold_is_at_the_start(expert: Teacher) -> None:
    method = make_method(fold_at=0.0, fold_observations=600)
    net = method.build(SPEC, [expert])
    generator = torch.Generator().manual_seed(0)

    def game(count: int, policy: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8, generator=generator)

    said = " ".join(method.prepare(net, game))
    assert "conv1 starts with" in said
    assert "Folded value R2" in said
    method.begin(net, 0, SPEC, rank=0)
    assert method.independent(net)
    assert method.metrics(net)["fold/r2/conv1"] > 0.99


def size_of_fc(net: nn.Module, obs: Tensor) -> float:
    seen: list[Tensor] = []
    handle = net.get_submodule("fc").register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(obs)
    handle.remove()
    return float(seen[0].square().mean().sqrt().detach())


def test_a_fold_of_strangers_starts_without_their_biases_and_at_a_fresh_nets_size(
    expert: Teacher, stranger: Teacher
) -> None:
    nn.init.constant_(stranger.net.get_submodule("conv1").bias, -0.5)
    obs = noise(600)

    def biases(teachers: list[Teacher], **flow: object) -> list[bool]:
        method = make_method(fold_observations=600, **flow)
        net = method.build(SPEC, teachers)
        list(method.prepare(net, lambda count, policy=None: obs[:count]))
        if not net.folded:
            method.begin(net, 0, SPEC, rank=0)
            list(method.end_phase(net, lambda count, policy=None: obs[:count]))
        kept = [bool(net.alone.get_submodule(layer).bias.any()) for layer in ("conv1", "conv2", "fc")]
        if not any(kept):
            every_other = obs[::2]
            assert size_of_fc(net.alone, every_other) == pytest.approx(size_of_fc(net.flow.student, every_other))
        return kept

    none, all_of_them = [False] * 3, [True] * 3
    assert biases([stranger], fold_at=0.0) == none
    assert biases([stranger], fold_at=0.0, keep_biases="always") == all_of_them
    # Links that were trained on the game have its thresholds.
    assert biases([stranger], fold_at=0.1) == all_of_them
    assert biases([stranger], fold_at=0.0, imitate="always") == all_of_them
    assert biases([stranger, expert], fold_at=0.0) == all_of_them


def test_a_strangers_policy_is_fitted_to_the_layers_without_their_biases(
    teacher: Callable[..., Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.methods.knowledge_flow.LEAST_HEAD_R2", -math.inf)
    stranger = teacher(AtariNet(4, ((2, 8, 8),), 7), SPEC.actions, game="seaquest")
    for layer in ("conv1", "fc"):
        nn.init.constant_(stranger.net.get_submodule(layer).bias, 0.5)
    nn.init.normal_(stranger.net.get_submodule("policy").weight)
    obs = noise(600)
    method = make_method(fold_at=0.0, fold_observations=600, link_heads="policies")
    net = method.build(SPEC, [stranger])
    assert "policy" in net.fold_layers
    list(method.prepare(net, lambda count, policy=None: obs[:count]))
    assert not net.alone.get_submodule("fc").bias.any()
    with torch.no_grad():
        wanted, found = net.flow(obs)[0], net.alone(obs)[0]
    # A least-squares fit with an intercept has the mean of what it fits.
    torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=0.02, rtol=0)


def test_a_head_whose_fold_explains_less_than_half_keeps_the_students_own_weights(
    expert: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [Link(head, expert.name, head) for head in ("policy", "value")]
    method = make_method(fold_at=0.0, fold_observations=600, links=heads)
    net = method.build(SPEC, [expert])
    own = {name: tensor.clone() for name, tensor in net.alone.state_dict().items()}
    observations = torch.randint(0, 256, (600, 4, 84, 84), dtype=torch.uint8)

    def folded(layer: str) -> bool:
        return not torch.equal(net.alone.state_dict()[f"{layer}.weight"], own[f"{layer}.weight"])

    # A fresh body of 8 units says little of what another net makes of noise.
    said = list(net.fold(observations))
    r2 = [float(r2) for _, r2 in net.fold_r2.named_buffers()]
    assert all(value < 0.5 for value in r2)
    assert [line for line in said if "own weights" in line] == [
        f"That is too little to start from: {head} keeps the student's own weights." for head in ("policy", "value")
    ]
    assert not folded("policy")
    assert not folded("value")
    assert net.folded
    monkeypatch.setattr("agents.methods.knowledge_flow.LEAST_HEAD_R2", min(r2) - 0.1)
    assert not any("own weights" in line for line in net.fold(observations))
    assert folded("policy")
    assert folded("value")


def test_channels_are_chosen_on_an_experts_own_play(expert: Teacher, stranger: Teacher, obs: Tensor) -> None:
    policies: list[Callable[[Tensor], Tensor] | None] = []

    def game(count: int, policy: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        policies.append(policy)
        return obs

    for teachers in ([stranger, expert], [stranger]):
        method = make_method()
        list(method.prepare(method.build(SPEC, teachers), game))
    played, at_random = policies
    assert at_random is None
    assert played is not None
    assert torch.equal(played(obs), expert.net(obs)[0][:, [3, 0, 4, 2]])


def test_an_experts_channels_come_before_a_strangers(expert: Teacher, stranger: Teacher, obs: Tensor) -> None:
    with torch.no_grad():
        # All five channels of the expert are in use, and one of the stranger's two: its use is twice the layer's mean.
        expert.net.get_parameter("conv1.bias").fill_(5.0)
        stranger.net.get_parameter("conv1.bias").copy_(torch.tensor([5.0, -50.0]))
    method = make_method(match_scales=False)
    said = list(method.prepare(method.build(SPEC, [stranger, expert]), lambda count, policy=None: obs))
    # The student's conv1 has four channels.
    assert "conv1 starts with 0 of 2 channels of seaquest.conv1, 4 of 5 channels of breakout.conv1." in said


def silenced(teacher: Teacher) -> Teacher:
    """All of its features are constant."""
    with torch.no_grad():
        for parameter in teacher.net.parameters():
            parameter.zero_()
    return teacher


def noise(count: int, policy: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8)


def test_a_useless_stranger_is_left_out_and_the_run_goes_on_without_it(expert: Teacher, stranger: Teacher) -> None:
    all_linked: dict[str, Any] = {"fold_at": 0.0, "fold_observations": 600, "link_heads": "always"}
    method = make_method(**all_linked)
    net = method.build(SPEC, [silenced(stranger), expert])
    said = list(method.prepare(net, noise))
    assert said[0].startswith(f"Teacher {stranger.name!r} is left out: its features are the same on all")
    assert not any(stranger.name in line for line in said[1:])
    assert net.folded
    for layer in net.flow.layers:
        assert net.flow.layer_weights(layer)[0].item() == pytest.approx(0.25)
        assert net.flow.weights().get(f"flow/p_teacher/{stranger.name}/{layer}", 0.0) == 0.0
    # A worker's net, which another process builds.
    theirs = make_method(**all_linked).build(SPEC, [stranger, expert])
    theirs.load_state_dict(untrained(net, method.parameter_groups(net)), strict=False, assign=True)
    assert theirs.flow.absent == {stranger.name}


def test_without_a_choice_of_channels_a_useless_teacher_is_seen_in_the_play_for_the_fold(
    expert: Teacher, stranger: Teacher
) -> None:
    unchosen: dict[str, Any] = {
        "fold_at": 0.0,
        "fold_observations": 600,
        "choose_channels": False,
        "link_heads": "always",
    }
    method = make_method(**unchosen)
    net = method.build(SPEC, [silenced(stranger), expert])
    said = list(method.prepare(net, noise))
    assert said[0].startswith(f"Teacher {stranger.name!r} is left out: its features are the same on all")
    assert net.folded
    assert net.flow.absent == {stranger.name}
    with torch.no_grad():
        expert.net.get_parameter("conv1.weight").fill_(torch.nan)
    method = make_method(**unchosen)
    with pytest.raises(UserError, match=f"Teacher '{expert.name}': layer conv1 gives numbers that are not finite"):
        list(method.prepare(method.build(SPEC, [expert]), noise))


def test_a_useless_expert_is_refused_whoever_teaches_beside_it(expert: Teacher, stranger: Teacher) -> None:
    method = make_method()
    net = method.build(SPEC, [stranger, silenced(expert)])
    with pytest.raises(UserError, match=f"Teacher '{expert.name}': its features .* Leave it out of --teachers"):
        list(method.prepare(net, noise))


def test_too_few_observations_are_refused_before_the_run(expert: Teacher) -> None:
    with pytest.raises(UserError, match=r"--fold-observations 50 are too few: layer fc .* Give 82 or more"):
        make_method(fold_observations=50).build(SPEC, [expert])


def test_a_buffer_larger_than_the_memory_is_refused(expert: Teacher, stranger: Teacher) -> None:
    with pytest.raises(UserError, match=r"--imitation-memory 10,000,000,000 needs 262,856\.\d GiB"):
        make_method(imitation_memory=10**10).build(SPEC, [expert])
    with pytest.raises(UserError, match=r"--fold-observations 10,000,000,000 needs 262,856\.\d GiB"):
        many = {"knowledge-flow": {"fold_observations": 10**10}}
        KnowledgeFlowMethod(TrainConfig(steps=10**12, methods=many)).build(SPEC, [stranger])


# --- what trains --------------------------------------------------------------------------------------------


def names_of(net: nn.Module, parameters: Sequence[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


def test_w_learns_by_plain_gradient_descent_at_a_rate_by_the_budget(expert: Teacher) -> None:
    config = TrainConfig(
        steps=1_000_000,
        workers=2,
        envs_per_worker=10,
        t_max=5,
        methods={"knowledge-flow": {"layer_weights_lr": 40.0, "fold_at": 0.2}},
    )
    method = KnowledgeFlowMethod(config)
    net = method.build(SPEC, [expert])
    body, weights = method.parameter_groups(net)
    assert body.sgd is None
    # A fifth of 1M steps, 50 an update: 4,000 updates.
    assert weights.sgd == pytest.approx(40.0 / 4000)
    # ppo makes 3 passes over 50 samples in minibatches of 25: an update for 25 / 3 steps.
    ppo = KnowledgeFlowMethod(replace(config, algo="ppo", ppo=PPOConfig(epochs=3, batch_size=25)))
    assert ppo.parameter_groups(ppo.build(SPEC, [expert]))[1].sgd == pytest.approx(40.0 / 24_000)
    assert names_of(net, weights.parameters) == [
        f"flow.mixing.raw.{layer}" for layer in ("conv1", "conv2", "fc", "policy", "value")
    ]
    assert {name.split(".")[1] for name in names_of(net, body.parameters)} == {"student", "transforms"}


def test_in_the_papers_setting_w_is_trained_as_everything_else(expert: Teacher) -> None:
    method = make_method(layer_weights_lr=None)
    net = method.build(SPEC, [expert])
    (group,) = method.parameter_groups(net)
    assert group.sgd is None
    assert {name.split(".")[1] for name in names_of(net, group.parameters)} == {"student", "transforms", "mixing"}


def test_no_teacher_is_in_the_optimiser(expert: Teacher, stranger: Teacher) -> None:
    method = make_method()
    groups = method.parameter_groups(method.build(SPEC, [expert, stranger]))
    trained = {id(parameter) for group in groups for parameter in group.parameters}
    frozen = [parameter for t in (expert, stranger) for parameter in t.net.parameters()]
    assert not any(id(parameter) in trained or parameter.requires_grad for parameter in frozen)


def test_the_reproductions_variant_keeps_q_and_puts_p_back_on_the_simplex(expert: Teacher, obs: Tensor) -> None:
    method = make_method(mixing="simplex", student_weight=None, layer_weights_lr=3.0)
    net = method.build(SPEC, [expert])
    body, weights = method.parameter_groups(net)
    assert not any("transforms" in name for name in names_of(net, body.parameters))
    assert not any(parameter.requires_grad for parameter in net.flow.transforms.parameters())
    assert net.flow.mixing("fc").tolist() == pytest.approx([0.1 / 1.1, 1 / 1.1])
    assert len(weights.parameters) == 5
    q = [parameter.clone() for parameter in net.flow.transforms.parameters()]
    optimiser = torch.optim.SGD([*body.parameters, *weights.parameters], lr=0.5)
    batch = play(method, net, obs)
    (batch.logits.sum() + batch.values.sum()).backward()
    optimiser.step()
    assert any(abs(sum(p.tolist()) - 1.0) > 1e-3 for p in weights.parameters)
    method.after_update(net, 0.5)
    for p in weights.parameters:
        assert sum(p.tolist()) == pytest.approx(1.0, abs=1e-6)
        assert min(p.tolist()) >= 0
    assert all(torch.equal(old, new) for old, new in zip(q, net.flow.transforms.parameters(), strict=True))


# --- what comes out -----------------------------------------------------------------------------------------


def test_metrics_tell_p_of_every_layer(expert: Teacher, stranger: Teacher) -> None:
    method = make_method(link_heads="never", student_weight=0.5)
    net = method.build(SPEC, [expert, stranger])
    expected = {f"flow/p_student/{layer}": 0.5 for layer in ("conv1", "conv2", "fc")}
    for name in ("breakout", "seaquest"):
        expected |= {f"flow/p_teacher/{name}/{layer}": 0.25 for layer in ("conv1", "conv2", "fc")}
    assert method.metrics(net) == pytest.approx(expected)


def test_metrics_add_up_to_one_in_every_layer(expert: Teacher, stranger: Teacher) -> None:
    links = tuple(
        Link("fc", name, layer) for name, layer in (("breakout", "fc"), ("breakout", "conv3"), ("seaquest", "fc"))
    )
    method = make_method(links=links)
    net = method.build(SPEC, [expert, stranger])
    randomise(net.flow.mixing)
    logged = method.metrics(net)
    assert set(logged) == {"flow/p_student/fc", "flow/p_teacher/breakout/fc", "flow/p_teacher/seaquest/fc"}
    assert sum(logged.values()) == pytest.approx(1.0)
    p = net.flow.layer_weights("fc").tolist()
    assert logged["flow/p_teacher/breakout/fc"] == pytest.approx(p[1] + p[2])


def test_the_export_is_a_plain_net(expert: Teacher, obs: Tensor) -> None:
    method = make_method()
    net = method.build(SPEC, [expert])
    for stage in range(3):
        net = staged(method, expert, stage)
        exported = method.export(net)
        plain = AtariNet(4, ((4, 8, 8), (4, 4, 2)), 8)
        plain.load_state_dict(exported.state_dict())
        assert torch.equal(exported(obs)[0], plain(obs)[0])
        assert not torch.equal(exported(obs)[0], net.flow(obs)[0])
        assert method.independent(net) == (stage > 0)
