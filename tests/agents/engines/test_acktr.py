from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.config import TrainConfig
from agents.engines.acktr import ACKTRTrainer, NaturalGradient, log_likelihood
from agents.engines.settings import ACKTRConfig
from agents.engines.shared import SharedModel, bind
from agents.launch import Session
from agents.objective import a3c_terms
from agents.run import reopen, resolve
from agents.trainer import Trainer
from kfrl.errors import UserError
from kfrl.optim.groups import ParameterGroup
from kfrl.optim.kfac import COLD_UPDATES, KroneckerFactors, basis, factored_layers, precondition, trust
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.training.session import Silent

TINY: dict[str, Any] = {
    **{"game": "Breakout", "algo": "acktr", "envs_per_worker": 2, "t_max": 4, "hidden": 8, "convs": ((4, 8, 8),)},
    **{"steps": 8 * (COLD_UPDATES + 3), "curve_points": 0, "eval_episodes": 0},
}

LINKED = {"fold_at": None, "choose_channels": False}


def test_a_values_factor_is_that_of_a_standard_deviation_of_a_half_and_the_actions_that_of_the_policy() -> None:
    logits, values = torch.randn(1, 3).expand(40_000, 3).clone().requires_grad_(), torch.zeros(40_000).requires_grad_()
    state = torch.get_rng_state()
    likelihood = log_likelihood(logits, values, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    policy, value = torch.autograd.grad(likelihood.sum(), [logits, values])
    assert value.square().mean() == pytest.approx(4.0, rel=0.03)
    p = logits[0].detach().softmax(0)
    torch.testing.assert_close(policy.T @ policy / 40_000, torch.diag(p) - torch.outer(p, p), rtol=0, atol=0.01)
    assert (policy[:, 0] @ value / 40_000).abs() < 0.05


def learner(config: ACKTRConfig) -> tuple[nn.Linear, Tensor, SharedModel, KroneckerFactors, NaturalGradient]:
    layer = nn.Linear(3, 2)
    groups = [ParameterGroup((layer.weight, layer.bias))]
    shared = SharedModel.create(groups, 1)
    grads = torch.zeros_like(shared.parameters)
    bind(groups, shared.parameters, grads)
    factors = KroneckerFactors({"only": layer}, {})
    return layer, grads, shared, factors, NaturalGradient(shared, groups, factors, config, max_grad_norm=0.5)


def test_cold_updates_are_momentum_on_clipped_gradients_and_then_the_natural_ones_begin_anew() -> None:
    config = ACKTRConfig(inverse_period=1)
    layer, grads, shared, factors, optimiser = learner(config)
    with factors.recording():
        z = layer(torch.randn(6, 3))
    factors.observe(z.log_softmax(1)[:, 0])
    gradient = torch.randn(8)
    expected, momentum = shared.parameters.clone(), torch.zeros(8)
    for _ in range(COLD_UPDATES):
        grads.copy_(gradient)
        assert optimiser.push(grads, 0.25) == pytest.approx(float(gradient.norm()))
        momentum = 0.9 * momentum + gradient * min(1.0, 0.5 / float(gradient.norm()))
        expected = expected - 0.25 * momentum
    torch.testing.assert_close(shared.parameters, expected)
    matrix = torch.cat([gradient[:6].view(2, 3), gradient[6:, None]], 1)
    found = precondition(matrix, basis(factors.state["only.inputs"]), basis(factors.state["only.outputs"]), 0.01)
    nu = trust(float((found * matrix).sum()), 0.25, config.trust_region)
    assert nu < 1
    step = torch.cat([found[:, :3].flatten(), found[:, 3]]) * nu
    for momentum in (step, 1.9 * step):
        grads.copy_(gradient)
        optimiser.push(grads, 0.25)
        expected = expected - 0.25 * 0.1 * momentum
        torch.testing.assert_close(shared.parameters, expected, rtol=1e-4, atol=1e-6)


def test_the_fisher_pass_sees_all_games() -> None:
    seen: list[Tensor] = []
    layer = nn.Linear(1, 3)

    def forward(net: nn.Module, obs: Tensor, context: tuple[Tensor, ...]) -> SimpleNamespace:
        seen.append(obs)
        assert torch.equal(context[0], obs)
        return SimpleNamespace(logits=net(obs.float()), values=torch.zeros(len(obs), requires_grad=True))

    trainer: Any = object.__new__(ACKTRTrainer)
    trainer.run = SimpleNamespace(config=SimpleNamespace(acktr=ACKTRConfig(fisher_samples=160)))
    trainer.method, trainer.net = SimpleNamespace(forward=forward), layer
    trainer.factors, trainer._generator = KroneckerFactors({"layer": layer}, {}), torch.Generator().manual_seed(1)
    # 20 steps of 32 games, a row for each; its number says which.
    rows = torch.arange(20 * 32).unsqueeze(1)
    for _ in range(2):
        trainer._observe(SimpleNamespace(obs=rows, context=(rows,)))
    first, second = (set(obs.flatten().tolist()) for obs in seen)
    assert len(first) == len(second) == 160
    assert first != second
    assert {row % 32 for row in first} == set(range(32))


def test_the_trust_region_is_one_for_all_layers() -> None:
    config = ACKTRConfig(trust_region=0.06, damping=0.01)
    net = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("one", "two")})
    groups = [ParameterGroup(tuple(net.parameters()))]
    shared = SharedModel.create(groups, 1)
    grads = torch.zeros_like(shared.parameters)
    bind(groups, shared.parameters, grads)
    state = {"count": torch.tensor(1)}
    for name, inputs in (("one", 1.99), ("two", 3.99)):
        state |= {f"{name}.inputs": torch.tensor([[inputs]]), f"{name}.outputs": torch.ones(1, 1)}
    factors = KroneckerFactors(factored_layers(net, net.parameters()), state)
    optimiser = NaturalGradient(shared, groups, factors, config, max_grad_norm=0.5)
    shared.adam_steps.fill_(COLD_UPDATES)
    before = shared.parameters.clone()
    grads.copy_(torch.tensor([2.0, 4.0]))
    optimiser.push(grads, 0.5)
    # V = (2 / 2, 4 / 4), <V, dW> = 2 + 4, nu = sqrt(0.06 / (0.25 x 6)) = 0.2, step = 0.5 (1 - 0.9) 0.2 V.
    torch.testing.assert_close(before - shared.parameters, torch.full((2,), 0.01))


@pytest.mark.parametrize(("updates", "step"), [(0, 0.5 * 2.0), (COLD_UPDATES, 0.01)], ids=["cold", "natural"])
def test_a_group_of_plain_gradient_descent_moves_by_its_rate_times_its_gradient_alone(
    updates: int, step: float
) -> None:
    layer, plain = nn.Linear(1, 1, bias=False), nn.Parameter(torch.ones(1))
    groups = [ParameterGroup((layer.get_parameter("weight"),)), ParameterGroup((plain,), sgd=0.1)]
    shared = SharedModel.create(groups, 1)
    grads = torch.zeros_like(shared.parameters)
    bind(groups, shared.parameters, grads)
    state = {"count": torch.tensor(1), "only.inputs": torch.tensor([[1.99]]), "only.outputs": torch.ones(1, 1)}
    config = ACKTRConfig(trust_region=0.02, damping=0.01)
    optimiser = NaturalGradient(shared, groups, KroneckerFactors({"only": layer}, state), config, max_grad_norm=100.0)
    shared.adam_steps[0] = updates
    before = shared.parameters.clone()
    grads.copy_(torch.tensor([2.0, 4.0]))
    optimiser.push(grads, 0.5)
    # Cold: lr x 2. Natural: V = 2 / 2, <V, dW> = 2, nu = sqrt(0.02 / (0.25 x 2)) = 0.2, step = 0.5 (1 - 0.9) 0.2 V.
    assert (before - shared.parameters).tolist() == pytest.approx([step, 0.1 * 4.0])
    assert shared.exp_avg[1] == 0.0
    assert shared.adam_steps.tolist() == [updates + 1.0, 0.0]


def test_a_zero_advantage_changes_the_step_and_not_the_factors(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_update(name: str) -> Trainer:
        session = Session.start(TrainConfig(**TINY | {"steps": 8}, run_dir=tmp_path / name))
        session.complete(Silent())
        return session.trainer

    usual = first_update("usual")
    monkeypatch.setattr(
        "agents.engines.synchronous.a3c_terms",
        lambda *given: {name: term * (name != "policy") for name, term in a3c_terms(*given).items()},
    )
    without = first_update("without")
    factors = usual.optimiser_state
    assert {"policy.outputs", "value.outputs", "fc.inputs"} < factors.keys() == without.optimiser_state.keys()
    assert all(torch.equal(without.optimiser_state[name], tensor) for name, tensor in factors.items())
    assert not torch.equal(without.shared.parameters, usual.shared.parameters)


def test_a_natural_gradient_of_no_length_is_dropped() -> None:
    _, grads, shared, factors, optimiser = learner(ACKTRConfig())
    shared.adam_steps.fill_(COLD_UPDATES)
    shared.exp_avg.fill_(1.0)
    before = shared.parameters.clone()
    assert optimiser.push(grads.zero_(), 0.25) is None
    assert factors.ready
    assert torch.equal(shared.parameters, before)
    assert shared.adam_steps.item() == COLD_UPDATES


def test_the_first_natural_update_and_then_each_period_takes_up_the_present_factors() -> None:
    _, grads, shared, factors, optimiser = learner(ACKTRConfig(inverse_period=4))
    shared.adam_steps.fill_(COLD_UPDATES)
    taken_up = {}
    for update in range(COLD_UPDATES, COLD_UPDATES + 10):
        factors.state["only.inputs"] = update * torch.eye(4)
        assert optimiser.push(grads.fill_(1.0), 0.25) is not None
        (taken_up[update],) = {round(value) for value in factors.state["only.inputs.values"].tolist()}
    assert taken_up == {11: 11, 12: 12, 13: 12, 14: 12, 15: 12, 16: 16, 17: 16, 18: 16, 19: 16, 20: 20}


def test_a_gradient_that_is_not_finite_is_dropped() -> None:
    _, grads, shared, _, optimiser = learner(ACKTRConfig())
    before = shared.parameters.clone()
    assert optimiser.push(grads.fill_(float("nan")), 0.25) is None
    assert torch.equal(shared.parameters, before)


def test_a_run_keeps_its_factors_in_the_checkpoint(tmp_path: Path, noise_games: None) -> None:
    session = Session.start(TrainConfig(**TINY, run_dir=tmp_path / "run"))
    session.complete(Silent())
    factors = session.trainer.optimiser_state
    assert int(factors["count"]) == COLD_UPDATES + 3
    assert {
        f"{name}.{side}.vectors" for name in ("conv1", "fc", "policy", "value") for side in ("inputs", "outputs")
    } < set(factors)
    resumed: Trainer = ACKTRTrainer(
        reopen(tmp_path / "run"), Silent(), latest_checkpoint(tmp_path / "run" / "checkpoint")
    )
    assert resumed.optimiser_state.keys() == factors.keys()
    assert all(torch.equal(resumed.optimiser_state[name], tensor) for name, tensor in factors.items())


def test_a_folded_student_of_knowledge_flow_has_factors(tmp_path: Path, noise_games: None) -> None:
    # An imitation instead of a fold, which would play thousands of steps.
    imitation = {"imitate": "always", "imitation_steps": 16, "imitation_memory": 64}
    flow = {"fold_observations": 0, "choose_channels": False, **imitation}
    taught = {"method": "knowledge-flow", "teachers": "zoo:pong", "methods": {"knowledge-flow": flow}}
    session = Session.start(TrainConfig(**TINY | taught, run_dir=tmp_path / "run"))
    session.complete(Silent())
    factors = session.trainer.optimiser_state
    names = {name for name in factors if name.endswith((".inputs", ".outputs"))}
    layers = ("conv1", "fc", "policy", "value")
    assert names == {f"alone.{layer}.{side}" for layer in layers for side in ("inputs", "outputs")}
    assert all(factors[name].any() for name in names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 256}, "2 games x 4 steps gives --algo acktr 8 samples .* 256 outputs of fc need 24 or more"),
        (
            {"hidden": 256, "envs_per_worker": 8, "acktr": ACKTRConfig(fisher_samples=23)},
            "--fisher-samples gives --algo acktr 23 samples .* Give --fisher-samples 24 or more",
        ),
        (
            {"method": "knowledge-flow", "teachers": "zoo:pong", "methods": {"knowledge-flow": LINKED}},
            "cannot factor the Fisher matrix of .*--algo a2c",
        ),
        ({"method": "progressive", "teachers": "zoo:pong"}, "cannot factor the Fisher matrix of .*scalars"),
        (
            {"method": "pathnet", "source_games": "Pong", "hidden": 256, "convs": TrainConfig().convs},
            r"cannot factor layers\.0\.\d and \d+ more layers: method pathnet .* without running .* Use --algo a2c",
        ),
    ],
)
def test_what_cannot_be_factored_is_refused_before_anything_is_written(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve(TrainConfig(**TINY | changes))


def test_a_net_with_a_layer_that_runs_twice_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(
        "from agents.methods.base import Method\n"
        "from kfrl.nets.atari.net import AtariNet\n"
        "class Net(AtariNet):\n"
        "    def forward(self, obs):\n"
        "        h = self.body(obs)\n"
        "        return self.policy(h) + self.policy(h.neg()), self.value(h).squeeze(1)\n"
        "class Twice(Method):\n"
        "    def build(self, spec, teachers):\n"
        "        return Net(len(spec.actions), self.config.convs, self.config.hidden)\n"
        "METHOD = Twice\n"
    )
    config = TrainConfig(**TINY, method=str(tmp_path / "twice.py"), run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot factor policy: it runs twice in one pass. Use --algo a2c"):
        Session.start(config)
    assert not (tmp_path / "run").exists()


def test_every_phase_is_checked(tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from agents.methods.base import Method, Phase\n"
        "from kfrl.optim.groups import ParameterGroup\n"
        "class Later(Method):\n"
        "    def build(self, spec, teachers):\n"
        "        net = self.student(spec)\n"
        "        net.scalar = nn.Parameter(torch.zeros(()))\n"
        "        return net\n"
        "    def phases(self, spec, teachers):\n"
        "        return (Phase((spec,), 80), Phase((spec,), 80))\n"
        "    def parameter_groups(self, net):\n"
        "        own = [p for p in net.parameters() if self.phase == 1 or p is not net.scalar]\n"
        "        return [ParameterGroup(tuple(own))]\n"
        "METHOD = Later\n"
    )
    with pytest.raises(UserError, match="cannot factor the Fisher matrix of scalar"):
        resolve(TrainConfig(**TINY, method=str(tmp_path / "later.py")))
