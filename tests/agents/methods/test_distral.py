"""Distral against its equations (Teh et al. 2017), and as a run."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.batch import Output, Rollout
from agents.config import TrainConfig
from agents.engines.registry import ENGINES
from agents.engines.settings import PPOConfig
from agents.launch import Session
from agents.methods.base import NetSpec
from agents.methods.distral import Distral, DistralNet
from agents.objective import Samples, a3c_terms, with_gradient
from agents.run import resolve
from agents.teachers.store import find_teacher
from envs.atari import action_set
from envs.protocols import get_protocol
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.training.status import Status

CONFIG = TrainConfig(game="Pong", envs_per_worker=1, convs=((4, 8, 8),), hidden=8)
PONG = NetSpec("pong", ("NOOP", "RIGHT", "LEFT"))
FREEWAY = NetSpec("freeway", ("NOOP", "UP", "DOWN", "LEFT"))
SPEC = replace(PONG, sources=(FREEWAY,))


def distral(columns: int, c_kl: float = 0.3, c_ent: float = 0.2, task: NetSpec = PONG) -> tuple[Distral, DistralNet]:
    config = replace(CONFIG, methods={"distral": {"variant": f"kl-ent-{columns}col", "c_kl": c_kl}}, entropy_coef=c_ent)
    method = Distral(config)
    net = method.build(SPEC, ())
    method.begin(net, 0, task, 0)
    with torch.no_grad():  # far from uniform
        for head in (net.h, *(own.get_submodule("policy") for own in net.games.values())):
            for parameter in head.parameters():
                parameter.normal_()
    return method, net


def rollout(obs: Tensor, actions: Tensor, rewards: Tensor) -> Rollout:
    """Steps that all end their episode: (T K, stack, H, W), (T, K), (T, K)."""
    nothing = torch.zeros_like(rewards)
    return Rollout(
        obs=obs,
        actions=actions.flatten(),
        num_envs=actions.shape[1],
        rewards=rewards,
        terminated=torch.ones_like(rewards, dtype=torch.bool),
        truncated=torch.zeros_like(rewards, dtype=torch.bool),
        truncated_values=nothing,
        bootstrap=nothing[0],
        contexts=((),),
        episodes=(),
        output=Output(nothing.flatten(), nothing.flatten()),
    )


def terms_of(method: Distral, net: DistralNet, played: Rollout, config: TrainConfig | None = None) -> dict[str, Tensor]:
    return a3c_terms(method, net, with_gradient(method, net, played), 0.0, config or method.config)


# --- equations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("c_kl", "c_ent"), [(0.01, 0.01), (0.03, 0.01), (0.02, 0.0), (0.0, 0.01)])
def test_alpha_and_beta_give_back_the_coefficients(c_kl: float, c_ent: float) -> None:
    method, _ = distral(2, c_kl, c_ent)
    beta = 1.0 / (method.c_kl + method.c_ent)
    assert method.alpha / beta == pytest.approx(c_kl)
    assert (1.0 - method.alpha) / beta == pytest.approx(c_ent)


def test_the_defaults_are_kl_and_entropy_in_two_columns_with_a3cs_entropy() -> None:
    method = Distral(TrainConfig())
    assert (method.alpha, method.c_kl, method.c_ent, method.columns) == (0.5, 0.01, 0.01, 2)


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(logit) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


@pytest.mark.parametrize("columns", [1, 2])
def test_rewards_are_regularised_by_hand(columns: int, obs: Tensor) -> None:
    method, net = distral(columns)
    played = rollout(obs, torch.tensor([[2, 0]]), torch.tensor([[1.0, -1.0]]))
    found = method.rewards(net, with_gradient(method, net, played))
    assert found.shape == (1, 2)
    assert not found.requires_grad
    for k, reward in enumerate([1.0, -1.0]):
        h = net.h(net.distilled(obs))[k].tolist()
        pi_0 = softmax([h[net.actions.index(name)] for name in PONG.actions])
        f = net.games["pong"](obs)[0][k].tolist()
        shared = [h[net.actions.index(name)] for name in PONG.actions] if columns == 2 else [0.0] * 3
        # alpha = 0.3 / (0.3 + 0.2), beta = 1 / (0.3 + 0.2)
        pi = softmax([0.6 * a + b for a, b in zip(shared, f, strict=True)])
        regularised = [
            reward + 0.6 / 2.0 * math.log(p_0) - 1.0 / 2.0 * math.log(p) for p_0, p in zip(pi_0, pi, strict=True)
        ]
        by_hand = sum(p * r for p, r in zip(pi, regularised, strict=True))
        assert found[0, k].item() == pytest.approx(by_hand, rel=1e-4)


FIRST = (1.0, -0.5, 0.25)
SECOND = ((0.5, -1.0, 0.0), (-0.25, 1.0, 2.0))


def objective(net: DistralNet, obs: Tensor, alpha: float, beta: float, two_columns: bool) -> Tensor:
    """J of a game of two steps, from the paper's definition and nothing of kfrl but the nets h and f.

    It begins in obs[0]; its first action leads to obs[1], the others to obs[2].
    """
    h = net.h(net.distilled(obs))[:, [net.actions.index(name) for name in PONG.actions]]
    f = net.games["pong"](obs)[0]
    log_pi_0 = h.log_softmax(1)
    log_pi = (alpha * h + f if two_columns else f).log_softmax(1)
    regularisation = alpha / beta * log_pi_0 - 1.0 / beta * log_pi
    total = torch.zeros(())
    for first in range(3):
        state = 1 if first == 0 else 2
        for second in range(3):
            probability = log_pi[0, first].exp() * log_pi[state, second].exp()
            reward = FIRST[first] + SECOND[state - 1][second]
            total = total + probability * (reward + regularisation[0, first] + regularisation[state, second])
    return total


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(("c_kl", "c_ent"), [(0.3, 0.2), (0.4, 0.0)])
def test_the_expected_gradient_is_that_of_the_papers_objective(columns: int, c_kl: float, c_ent: float) -> None:
    method, net = distral(columns, c_kl, c_ent)
    config = replace(method.config, gamma=1.0)
    policy = [p for name, p in net.named_parameters() if "pong.value" not in name and "freeway" not in name]
    states = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    beta = 1.0 / (c_kl + c_ent)
    papers = torch.autograd.grad(objective(net, states, c_kl * beta, beta, columns == 2), policy)

    with torch.no_grad():
        pi = method.forward(net, states, ()).logits.softmax(1)
    expected = [torch.zeros_like(p) for p in policy]
    for first, second in itertools.product(range(3), range(3)):
        state = 1 if first == 0 else 2
        played = rollout(
            states[[0, state]],
            torch.tensor([[first], [second]]),
            torch.tensor([[FIRST[first]], [SECOND[state - 1][second]]]),
        )
        played = replace(played, terminated=torch.tensor([[False], [True]]))
        terms = terms_of(method, net, played, config)
        loss = torch.stack([term for name, term in terms.items() if name != "value"]).sum()
        for total, grad in zip(expected, torch.autograd.grad(loss, policy), strict=True):
            total -= pi[0, first] * pi[state, second] * grad
    for found, by_definition in zip(expected, papers, strict=True):
        torch.testing.assert_close(found, by_definition, rtol=1e-3, atol=1e-4 * by_definition.abs().max().item())
        assert by_definition.abs().max() > 1e-3


@pytest.mark.parametrize("columns", [1, 2])
def test_both_gradient_terms_of_the_distilled_policy_by_hand(columns: int, obs: Tensor) -> None:
    method, net = distral(columns)
    indices = [net.actions.index(name) for name in PONG.actions]
    terms = terms_of(method, net, rollout(obs, torch.tensor([[2, 0]]), torch.tensor([[1.0, -1.0]])))
    own = net.games["pong"].get_parameter("policy.bias")
    found = {}
    for name in ("policy", "entropy", "distilled"):
        h, f = torch.autograd.grad(terms[name], (net.h.bias, own), retain_graph=True, allow_unused=True)
        found[name] = torch.zeros(3) if h is None else h[indices], f
    # The first term: h is in pi_i by alpha, 0.6, with two columns and not at all with one.
    for name in ("policy", "entropy"):
        h, f = found[name]
        torch.testing.assert_close(h, 0.6 * f if columns == 2 else torch.zeros(3), rtol=1e-4, atol=1e-6)
    # The second, -c_KL (pi_i - pi_0) of the loss, is what is left of the divergence's.
    with torch.no_grad():
        pi = method.forward(net, obs, ()).logits.softmax(1)
        pi_0 = net.distilled_logits("pong", obs).softmax(1)
    h, f = found["distilled"]
    second = h - (0.6 * f if columns == 2 else 0.0)
    torch.testing.assert_close(second, -0.3 * (pi - pi_0).mean(0), rtol=1e-4, atol=1e-6)
    log_ratio = (pi / pi_0).log()
    divergence = (pi * log_ratio).sum(1, keepdim=True)
    torch.testing.assert_close(f, 0.3 * (pi * (log_ratio - divergence)).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("columns", [1, 2])
def test_the_acting_pass_serves_the_update_as_a_pass_of_its_own_does(columns: int) -> None:
    method, net = distral(columns)
    played = replace(
        rollout(torch.zeros(0), torch.tensor([[2, 0], [1, 1]]), torch.tensor([[1.0, -1.0], [0.5, 0.0]])),
        obs=torch.randint(0, 256, (4, 4, 84, 84), dtype=torch.uint8),
        bootstrap=torch.zeros(2),
    )
    gradients = []
    for keep_graph in (False, True):
        net.zero_grad()
        with torch.set_grad_enabled(keep_graph):
            output = Output.joined([method.forward(net, obs, ()) for obs in played.obs.split(2)])
        acted = replace(played, output=output)
        torch.stack(list(terms_of(method, net, acted).values())).sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for recomputed, kept in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-3, atol=1e-5)


# --- the net ------------------------------------------------------------------------------------------------


def test_actions_meet_by_meaning(obs: Tensor) -> None:
    _, net = distral(2)
    assert net.actions == ("NOOP", "UP", "RIGHT", "LEFT", "DOWN")
    before = {game: net(game, obs)[0].detach() for game in ("pong", "freeway")}
    with torch.no_grad():
        net.h.bias[net.actions.index("LEFT")] += 1.0
    for game, actions in (("pong", PONG.actions), ("freeway", FREEWAY.actions)):
        moved = (net(game, obs)[0] - before[game])[0]
        torch.testing.assert_close(moved, torch.tensor([0.6 * (name == "LEFT") for name in actions]))
    with torch.no_grad():
        net.h.bias[net.actions.index("UP")] += 1.0
    torch.testing.assert_close(net("pong", obs)[0] - before["pong"], moved_left(PONG))


def moved_left(spec: NetSpec) -> Tensor:
    return torch.tensor([[0.6 * (name == "LEFT") for name in spec.actions]] * 2)


def test_a_worker_trains_its_own_game_and_the_distilled_policy(obs: Tensor) -> None:
    method, net = distral(2, task=FREEWAY)
    actions = torch.tensor([[3, 1]])
    terms = terms_of(method, net, rollout(obs, actions, torch.ones(1, 2)))
    torch.stack(list(terms.values())).sum().backward()
    touched = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in net.named_parameters() if p.grad is not None
    }
    assert {"games.freeway", "distilled.fc"} <= touched
    assert "games.pong" not in touched
    distilled, *games = method.parameter_groups(net)
    assert not distilled.lazy
    assert all(group.lazy for group in games)
    assert sum(len(group.parameters) for group in (distilled, *games)) == len(list(net.parameters()))


@pytest.mark.parametrize("columns", [1, 2])
def test_the_exported_net_plays_as_the_trained_one_and_knows_no_other_game(columns: int, obs: Tensor) -> None:
    method, net = distral(columns)
    exported = method.export(net)
    output = method.forward(net, obs, ())
    for ours, theirs in zip((output.logits, output.values), exported(obs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    before = exported(obs)[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert torch.equal(exported(obs)[0], before)
    plain = sum(p.numel() for p in AtariNet(3, CONFIG.convs, CONFIG.hidden).parameters())
    column = sum(p.numel() for p in net.distilled.parameters())
    held = sum(p.numel() for p in exported.parameters())
    assert held == (plain if columns == 1 else plain + column + 8 * 3)


# --- a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source_games": ""}, "distral needs source games"),
        ({"source_steps": 100}, "learns no game before its own"),
        ({"algo": "acktr"}, "only under a3c or a2c or ppo. Its games take turns"),
        ({"workers": 1}, "2 games at the same time"),
        ({"teachers": "zoo:seaquest"}, "takes no teachers"),
        ({"entropy_coef": 0.0, "methods": {"distral": {"c_kl": 0.0}}}, "--c-kl or --entropy-coef"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], words: str, tmp_path: Path) -> None:
    config = replace(CONFIG, method="distral", source_games="freeway", workers=2, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=words):
        resolve(replace(config, **settings))
    assert list(tmp_path.iterdir()) == []


class Silent:
    def update(self, status: Status) -> None:
        pass

    def say(self, text: str) -> None:
        pass


@pytest.mark.slow
def test_two_games_train_at_the_same_time_and_a_checkpoint_holds_both(tmp_path: Path) -> None:
    # Enough steps that Freeway's worker takes part even if Pong's starts well before it.
    config = replace(CONFIG, method="distral", source_games="freeway", workers=2, steps=1000, curve_points=0)
    run = Session.start(replace(config, run_dir=tmp_path / "run", eval_episodes=0)).run
    trainer = ENGINES["a3c"](run, Silent())
    first = {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}
    outcome = trainer.train()
    assert outcome.failure is None
    assert outcome.step >= 1000
    assert outcome.source_steps > 0
    trained = {name for name, tensor in trainer.net.state_dict().items() if not torch.equal(tensor, first[name])}
    assert {name.rsplit(".", 2)[0] for name in trained} == {"distilled", "h", "games.pong", "games.freeway"}
    # Every update trains the distilled policy, and one of the games' nets.
    distilled, pong, freeway = trainer.shared.adam_steps.tolist()
    assert pong + freeway == trainer.shared.updates.sum()
    assert distilled == pytest.approx(pong + freeway, rel=0.05), "without a lock, a count may get lost"
    assert pong == outcome.step / 5
    row = read_metrics(run.folder.metrics)[-1]
    assert {"charts/episodes", "charts/episodes/freeway", "losses/distilled"} <= row.keys()

    again = ENGINES["a3c"](run, Silent(), latest_checkpoint(run.folder.checkpoints))
    assert (again.step, again.source_steps) == (outcome.step, outcome.source_steps)
    for name in ("parameters", "exp_avg", "exp_avg_sq", "adam_steps"):
        assert torch.equal(getattr(again.shared, name), getattr(trainer.shared, name)), name
    agent = find_teacher(str(run.folder.path), tmp_path)
    assert (agent.card.game, agent.card.arch["family"], agent.card.steps) == ("pong", "columns", outcome.step)


def test_a_run_has_a_net_for_each_game(tmp_path: Path) -> None:
    config = replace(CONFIG, method="distral", source_games="freeway,boxing", workers=4, run_dir=tmp_path / "run")
    run = resolve(config)
    assert [task.game for task in run.phases[0].games] == ["pong", "freeway", "boxing"]
    net = run.method().build(run.spec, ())
    assert isinstance(net, DistralNet)
    for game in ("pong", "freeway", "boxing"):
        assert net.games[game].get_parameter("policy.bias").shape == (len(action_set(get_protocol("paper", game))),)
    assert len(net.actions) == 18


# --- the paper's rows, and engines with one learner ----------------------------------------------------------------


def named(variant: str) -> tuple[Distral, Any]:
    terms = {} if variant.startswith("a3c") else {"c_kl": 0.3}
    config = replace(CONFIG, methods={"distral": {"variant": variant, **terms}}, entropy_coef=0.2)
    method = Distral(config)
    net = method.build(SPEC, ())
    method.begin(net, 0, PONG, 0)
    return method, net


@pytest.mark.parametrize(
    ("variant", "c_kl", "c_ent", "weight"),
    [
        ("kl-ent-2col", 0.3, 0.2, 0.6),
        ("kl-ent-1col", 0.3, 0.2, 0.0),
        ("kl-2col", 0.5, 0.0, 1.0),  # 1 / beta = 0.3 + 0.2
        ("kl-1col", 0.5, 0.0, 0.0),
        ("a3c-2col", 0.0, 0.2, 1.0),
    ],
)
def test_a_variant_is_a_choice_of_terms_and_columns(
    variant: str, c_kl: float, c_ent: float, weight: float, obs: Tensor
) -> None:
    method, net = named(variant)
    assert (method.c_kl, method.c_ent) == pytest.approx((c_kl, c_ent))
    assert net.alpha == pytest.approx(weight)
    played = rollout(obs, torch.tensor([[2, 0]]), torch.tensor([[1.0, -1.0]]))
    terms = terms_of(method, net, played)
    assert ("distilled" in terms, "entropy" in terms) == (c_kl > 0, c_ent > 0)
    sum(terms.values(), torch.zeros(())).backward()
    assert bool(net.h.weight.grad is not None and net.h.weight.grad.any())


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"variant": "a3c-2col", "c_kl": 0.5}, r"--c-kl 0.5 has no effect in this run: .*a3c-2col"),
        ({"variant": "a3c-multitask", "c_kl": 0.5}, r"--c-kl 0.5 has no effect in this run: .*a3c-multitask"),
    ],
)
def test_a_setting_that_a_variant_overrules_is_refused(own: dict[str, Any], words: str) -> None:
    method = Distral(replace(CONFIG, methods={"distral": own}))
    with pytest.raises(UserError, match=words):
        method.check_used()


def test_a_config_of_an_earlier_version_with_columns_is_read_as_a_variant() -> None:
    def variant(**own: object) -> str:
        return str(Distral(replace(CONFIG, methods={"distral": own})).own.variant)

    assert variant(columns=1, variant=None) == "kl-ent-1col"
    assert variant(columns=2, variant=None) == variant(variant=None) == "kl-ent-2col"
    assert variant(columns=2, variant="kl-1col") == "kl-1col"


def test_the_a3c_rows_have_a3cs_rewards(obs: Tensor) -> None:
    for variant in ("a3c-2col", "a3c-multitask"):
        method, net = named(variant)
        played = rollout(obs, torch.tensor([[2, 0]]), torch.tensor([[1.0, -1.0]]))
        assert torch.equal(method.rewards(net, with_gradient(method, net, played)), played.rewards)


def test_multitask_is_one_net_whose_export_has_the_games_own_actions(obs: Tensor) -> None:
    method, net = named("a3c-multitask")
    (group,) = method.parameter_groups(net)
    assert len(group.parameters) == len(list(AtariNet(3, ((4, 8, 8),), 8).parameters()))
    exported = method.export(net)
    logits, values, _ = net("pong", obs)
    torch.testing.assert_close(exported(obs), (logits, values))
    whole = net.net(obs)[0]
    assert torch.equal(logits, whole[:, [net.actions.index(name) for name in PONG.actions]])


@pytest.mark.parametrize(("algo", "variant"), [("a2c", "kl-ent-1col"), ("ppo", "a3c-multitask"), ("ppo", "kl-1col")])
def test_one_learner_plays_the_games_in_turn(algo: str, variant: str, tmp_path: Path, noise_games: None) -> None:
    settings = TrainConfig(
        game="Pong",
        source_games="Breakout",
        method="distral",
        methods={"distral": {"variant": variant}},
        algo=algo,
        envs_per_worker=4,
        t_max=4,
        ppo=replace(TrainConfig().ppo, epochs=1, batch_size=8),
        steps=32,
        convs=((4, 8, 8),),
        hidden=8,
        curve_points=0,
        eval_episodes=0,
        run_dir=tmp_path / "run",
    )
    session = Session.start(settings)
    session.prepare(Silent())
    before = {name: tensor.clone() for name, tensor in session.trainer.net.state_dict().items()}
    outcome = session.trainer.train()
    assert (outcome.failure, outcome.step, outcome.source_steps) == (None, 32, 24)  # Pong, Breakout, ..., Pong
    moved = {name for name, tensor in outcome.net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in before if name.startswith(("games.", "net."))} <= moved
    assert "h.weight" in moved or variant == "a3c-multitask"


def test_ppo_estimates_its_advantages_from_the_regularised_rewards(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Tensor] = []

    def noted(rollout: Rollout, rewards: Tensor, config: TrainConfig) -> Samples:
        used.append(rewards)
        return Samples.of(rollout, rewards, config)

    monkeypatch.setattr("agents.engines.synchronous.Samples", SimpleNamespace(of=noted))
    settings = {"algo": "ppo", "envs_per_worker": 4, "t_max": 4, "ppo": PPOConfig(epochs=1, batch_size=8), "steps": 8}
    run_only = {"curve_points": 0, "eval_episodes": 0, "run_dir": tmp_path / "run"}
    session = Session.start(
        replace(CONFIG, method="distral", source_games="Breakout", entropy_coef=0.2, **settings, **run_only)
    )
    session.prepare(Silent())
    session.trainer.shared.parameters.zero_()
    assert session.trainer.train().failure is None
    # A reward of 1, and c_Ent times the entropy of a policy with six equal actions, which is the distilled one's too.
    assert len(used) == 1
    torch.testing.assert_close(used[0], torch.full((4, 2), 1.0 + 0.2 * math.log(6)))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"envs_per_worker": 3}, r"divides its --envs-per-worker over 2 games, got 3. Give a multiple of 2, e.g. 4"),
        ({"algo": "ppo"}, r"--batch-size 8 does not divide a rollout of one of 2 games: 1 environments x 4 steps = 4"),
    ],
)
def test_shapes_that_two_games_cannot_share_are_refused(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = {"algo": "a2c", "envs_per_worker": 2, "t_max": 4, "ppo": replace(TrainConfig().ppo, batch_size=8)}
    with pytest.raises(UserError, match=words):
        resolve(replace(CONFIG, method="distral", source_games="Freeway", run_dir=tmp_path / "r", **{**given, **more}))
