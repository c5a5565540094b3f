"""Recurrent nets: what a state is carried over, where it starts anew, and what the gradient goes back through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.config import TrainConfig
from agents.evaluation.play import Screening, evaluate, policy_of
from agents.methods.base import Method
from agents.objective import Samples, a3c_terms, with_gradient
from agents.policies import Player, policy_from
from agents.rollout import Collector, Rollout
from envs.atari import Episode, Transition
from envs.protocols import Protocol, get_protocol
from kfrl.nets.atari.lstm import LSTMNet

CONFIG = TrainConfig(game="Pong", net="lstm")
ACTIONS = ("NOOP", "FIRE", "LEFT")
T, K = 5, 2


class Script:
    """Games of noise whose episodes end at given steps, the same in every instance."""

    actions = ACTIONS
    lives: ClassVar[dict[int, list[int]]] = {}
    """Step -> games that lose a life."""
    overs: ClassVar[dict[int, list[int]]] = {}
    """Step -> games that are over."""
    cuts: ClassVar[dict[int, list[int]]] = {}
    """Step -> games that are truncated."""

    def __init__(self, protocol: Protocol | None = None, num_envs: int = K, **other: Any) -> None:
        self.num_envs, self.clock = num_envs, 0

    def _screens(self, seed: int) -> NDArray[np.uint8]:
        return np.random.default_rng(seed).integers(0, 256, (self.num_envs, 4, 84, 84), dtype=np.uint8)

    def reset(self, seed: int) -> NDArray[np.uint8]:
        return self._screens(0)

    def step(self, actions: NDArray[np.int64]) -> Transition:
        self.clock += 1

        def flags(when: dict[int, list[int]]) -> NDArray[np.bool_]:
            return np.isin(np.arange(self.num_envs), when.get(self.clock, []))

        over, cut = flags(self.overs), flags(self.cuts)
        return Transition(
            obs=self._screens(self.clock),
            rewards=np.arange(self.num_envs, dtype=np.float32) + self.clock % 3,
            terminated=over | flags(self.lives),
            truncated=cut,
            final_obs=self._screens(1000 + self.clock) if (over | cut).any() else None,
            episodes=tuple(Episode(int(k), 1.0, 1, bool(cut[k])) for k in np.flatnonzero(over | cut)),
        )


@pytest.fixture
def net() -> LSTMNet:
    """Its policy differs between observations, so that a wrong state shows."""
    made = LSTMNet(len(ACTIONS), ((4, 8, 8),), 8)
    nn.init.orthogonal_(made.policy.weight)
    return made


@pytest.fixture
def envs(monkeypatch: pytest.MonkeyPatch) -> type[Script]:
    """At step 3 game 1 loses a life."""

    class Games(Script):
        lives: ClassVar[dict[int, list[int]]] = {3: [1]}

    monkeypatch.setattr("agents.evaluation.play.AtariEnvs", Games)
    return Games


def collector(net: LSTMNet, envs: Any, games: int = K, *, keep_graph: bool = False) -> Collector:
    return Collector(envs(num_envs=games), Method(CONFIG), net, T, seed=3, keep_graph=keep_graph)


def unrolled(net: LSTMNet, obs: Tensor, state: tuple[Tensor, Tensor], ends: dict[int, list[int]]) -> dict[str, Any]:
    """The net on observations (T, K, ...) by PyTorch's cell, game by game; `ends`: step -> games that begin anew."""
    cell = nn.LSTMCell(8, 8)
    for name, tensor in {"weight_ih": net.gates.weight, "weight_hh": net.recurrence.weight}.items():
        cell.get_parameter(name).data = tensor
        setattr(cell, name, tensor)
    cell.bias_ih = net.gates.bias
    cell.bias_hh = nn.Parameter(torch.zeros(32))
    games = []
    for k in range(obs.shape[1]):
        h, c = state[0][k : k + 1], state[1][k : k + 1]
        steps = []
        for t in range(len(obs)):
            if k in ends.get(t, []):
                h, c = torch.zeros(1, 8), torch.zeros(1, 8)
            h, c = cell(net.body(obs[t, k : k + 1]), (h, c))
            steps.append(h)
        games.append((torch.cat(steps), c))
    h = torch.stack([steps for steps, _ in games], dim=1)
    return {"h": h[-1], "c": torch.cat([c for _, c in games]), "logits": net.policy(h), "values": net.value(h)[..., 0]}


def gradient(net: LSTMNet, loss: Tensor) -> Tensor:
    net.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def split(rollout: Rollout) -> Tensor:
    return rollout.obs.unflatten(0, (T, -1))


@pytest.mark.parametrize("keep_graph", [False, True])
def test_the_gradient_of_a_rollout_is_that_of_the_unrolled_net_from_a_constant_state(
    net: LSTMNet, keep_graph: bool
) -> None:
    class Games(Script):
        lives: ClassVar[dict[int, list[int]]] = {3: [1], T + 2: [0]}

    player = collector(net, Games, keep_graph=keep_graph)
    first, second = player.collect(), player.collect()
    assert second.output.has_graph == keep_graph
    nothing = (torch.zeros(K, 8), torch.zeros(K, 8))
    before = unrolled(net, split(first), nothing, {3: [1]})
    start = (before["h"].detach(), before["c"].detach())
    expected = unrolled(net, split(second), start, {2: [0]})
    torch.testing.assert_close(second.logits, expected["logits"].flatten(0, 1))
    torch.testing.assert_close(second.values, expected["values"].flatten())

    method = Method(CONFIG)
    terms = a3c_terms(method, net, with_gradient(method, net, second), 0.0, CONFIG)
    other = replace(
        second,
        output=replace(second.output, logits=expected["logits"].flatten(0, 1), values=expected["values"].flatten()),
    )
    theirs = a3c_terms(method, net, other, 0.0, CONFIG)
    ours = gradient(net, torch.stack(list(terms.values())).sum())
    torch.testing.assert_close(ours, gradient(net, torch.stack(list(theirs.values())).sum()), rtol=1e-3, atol=1e-5)

    # Neither the steps alone nor the rollout before give the same.
    alone = net(second.obs)
    assert not torch.allclose(alone[0], second.logits, atol=1e-3)
    whole = gradient(net, sum_of_squares(unrolled(net, split(second), (before["h"], before["c"]), {})))
    cut = gradient(net, sum_of_squares(unrolled(net, split(second), start, {})))
    assert not torch.allclose(whole, cut, rtol=1e-3)


def sum_of_squares(found: dict[str, Any]) -> Tensor:
    total: Tensor = found["values"].square().sum() + found["logits"].square().sum()
    return total


def test_the_value_after_a_rollout_reads_the_last_state(net: LSTMNet, envs: type[Script]) -> None:
    player = collector(net, envs)
    first, second = player.collect(), player.collect()
    torch.testing.assert_close(first.bootstrap, second.values[:K].detach())
    assert not torch.allclose(first.bootstrap, net(second.obs[:K])[1].detach(), atol=1e-4)


def test_a_game_whose_episode_ends_starts_with_no_state_and_the_other_goes_on(net: LSTMNet, envs: type[Script]) -> None:
    rollout = collector(net, envs).collect()

    class Endless(Script):
        pass

    without = collector(net, Endless).collect()
    assert torch.equal(rollout.obs, without.obs)
    logits, others = rollout.logits.unflatten(0, (T, K)), without.logits.unflatten(0, (T, K))
    fresh = net(split(rollout)[3])[0]
    torch.testing.assert_close(logits[3, 1], fresh[1])
    assert not torch.allclose(logits[3:, 1], others[3:, 1], atol=1e-4)
    torch.testing.assert_close(logits[:, 0], others[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits[:3, 1], others[:3, 1], rtol=0, atol=1e-6)
    assert not torch.allclose(logits[3, 0], fresh[0], atol=1e-4)


def test_a_truncated_game_is_valued_with_its_state_and_the_next_one_starts_without(net: LSTMNet) -> None:
    class Cut(Script):
        cuts: ClassVar[dict[int, list[int]]] = {2: [0]}

    rollout = collector(net, Cut).collect()
    nothing = torch.zeros(K, 16)
    obs = split(rollout)
    with torch.no_grad():
        *_, state = net.step(obs[0], nothing)
        *_, state = net.step(obs[1], state)
        final = torch.from_numpy(Script()._screens(1002))
        _, values, _ = net.step(final, state)
    assert rollout.truncated[1].tolist() == [True, False]
    torch.testing.assert_close(rollout.truncated_values[1, 0], values[0])
    torch.testing.assert_close(rollout.logits[2 * K].detach(), net(obs[2])[0][0].detach())


def test_the_evaluation_plays_the_policy_of_the_training(net: LSTMNet, monkeypatch: pytest.MonkeyPatch) -> None:
    class Games(Script):
        lives: ClassVar[dict[int, list[int]]] = {3: [1]}
        overs: ClassVar[dict[int, list[int]]] = {T: [0, 1]}

    monkeypatch.setattr("agents.evaluation.play.AtariEnvs", Games)
    trained = collector(net, Games).collect().logits.detach().unflatten(0, (T, K))
    heard: list[Tensor] = []
    play = Player.logits

    def listening(player: Player, *asked: Any) -> Tensor:
        heard.append(play(player, *asked).clone())
        return heard[-1]

    monkeypatch.setattr(Player, "logits", listening)
    policy = policy_of(net.eval(), ACTIONS, ACTIONS)
    evaluate(policy, get_protocol("paper", "Pong"), episodes=2, num_envs=2)
    torch.testing.assert_close(torch.stack(heard).softmax(2), trained.softmax(2))
    heard.clear()
    monkeypatch.setattr("agents.evaluation.play._captioned", lambda screens, score: screens)
    list(Screening(policy, get_protocol("paper", "Pong"), max_steps=T))
    video = collector(net, Games, games=1).collect()
    torch.testing.assert_close(torch.cat(heard), video.logits.detach())


def test_games_that_still_play_keep_their_own_states(net: LSTMNet, obs: Tensor) -> None:
    player = Player(policy_from(net), 3)
    three = torch.cat([obs, obs[:1].flip(3)])
    with torch.no_grad():
        player.logits(three, np.arange(3))
        *_, state = net.step(three, torch.zeros(3, 16))
        expected, _, _ = net.step(three[[0, 2]], state[[0, 2]])
        torch.testing.assert_close(player.logits(three[[0, 2]], np.array([0, 2])), expected)


def test_actions_of_a_recurrent_net_are_matched_by_name(net: LSTMNet, obs: Tensor) -> None:
    player = Player(policy_of(net, ACTIONS, ("LEFT", "NOOP", "UP", "FIRE")), 2)
    with torch.no_grad():
        logits = player.logits(obs, np.arange(2))
    torch.testing.assert_close(logits[:, [1, 3, 0]], net(obs)[0].detach())
    assert logits[:, 2].eq(-torch.inf).all()


@pytest.mark.parametrize("size", [T, 2 * T])
def test_minibatches_of_ppo_are_whole_games_from_their_states(net: LSTMNet, size: int) -> None:
    class Games(Script):
        lives: ClassVar[dict[int, list[int]]] = {T + 2: [0, 2]}

    player, method = collector(net, Games, games=4), Method(CONFIG)
    player.collect()
    rollout = player.collect()
    samples = Samples.of(rollout, rollout.rewards, CONFIG)
    seen = []
    for indices, games in samples.shuffled(size):
        batch = with_gradient(method, net, samples.pick(indices, (), games))
        assert len(batch.values) == size
        torch.testing.assert_close(batch.logits, rollout.logits[indices])
        torch.testing.assert_close(batch.values, rollout.values[indices])
        seen += indices.tolist()
    assert sorted(seen) == list(range(4 * T))
