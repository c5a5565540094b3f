"""Every preset, step by step, beside the published wrappers that it is named after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from numpy.typing import NDArray
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from agents.evaluation.own_envs import OwnEnvs
from envs.atari import AtariEnvs
from envs.preprocessing import ALE, PRESETS
from envs.protocols import get_protocol

gym.register_envs(ale_py)
BASELINES = PRESETS["baselines"]


def sb3(game: str) -> VecFrameStack:
    """What `make_atari_env` makes of one game, with one no-op at its start."""

    def make() -> gym.Env[NDArray[np.uint8], int]:
        return AtariWrapper(Monitor(gym.make(f"{game}NoFrameskip-v4")), noop_max=1)

    return VecFrameStack(DummyVecEnv([make]), 4)


def chosen(policy: str, actions: int, steps: int) -> NDArray[np.int64]:
    if policy == "never fires":
        return np.full(steps, 3)  # to the left, where the ball is not: with one no-op a paddle at rest hits it
    return np.random.default_rng(3).integers(actions, size=steps)


@pytest.mark.parametrize(
    ("game", "policy", "steps"),
    [
        ("Breakout", "never fires", 240),
        ("Breakout", "random", 400),
        ("Seaquest", "random", 800),
        ("Qbert", "random", 800),
        ("Freeway", "random", 60),
    ],
)
def test_sb3_is_stable_baselines3s_wrapper(game: str, policy: str, steps: int) -> None:
    theirs = sb3(game)
    protocol = replace(get_protocol("sb3", game), noop_max=1)
    ours, plain = OwnEnvs(protocol, 1, BASELINES), AtariEnvs(protocol, 2)
    expected, seen = theirs.reset(), ours.reset(0)
    plain.reset(0)
    games: list[float] = []
    for action in chosen(policy, len(ours.actions), steps):
        np.testing.assert_array_equal(seen, np.asarray(expected).transpose(0, 3, 1, 2))
        expected, rewards, dones, infos = theirs.step(np.array([action]))
        step, beside = ours.step(np.array([action])), plain.step(np.array([action, action]))
        seen = step.obs
        assert [step.rewards[0], step.terminated[0]] == [rewards[0], dones[0]]
        assert step.rewards.tolist() == beside.rewards[:1].tolist()
        assert step.terminated.tolist() == beside.terminated[:1].tolist()
        assert step.episodes == tuple(episode for episode in beside.episodes if episode.env == 0)
        scores = [episode.score for episode in step.episodes]
        assert scores == [info["episode"]["r"] for info in infos if "episode" in info]
        games += scores
    assert games or game == "Freeway", "new games and their starts are in it"


def test_an_agent_that_never_fires_loses_its_five_lives_in_breakout() -> None:
    envs = AtariEnvs(get_protocol("sb3", "Breakout"), 1)
    envs.reset(0)
    played = [envs.step(np.array([3])) for _ in range(130)]
    (last, *_) = [t for t, step in enumerate(played) if step.episodes]
    assert sum(int(step.terminated[0]) for step in played[: last + 1]) == 5


def test_a_start_has_one_to_thirty_noops() -> None:
    protocol = replace(get_protocol("sb3", "Freeway"), noop_max=3, frame_skip=1, max_frames=4, max_pool=False)
    envs = AtariEnvs(protocol, 1)
    envs.reset(0)
    lengths = set()
    for _ in range(60):
        step = envs.step(np.array([0]))
        lengths |= {episode.steps for episode in step.episodes}
    assert lengths == {1, 2, 3}, "the cap counts the no-ops, as the console does"


def gymnasiums(game: str, protocol: Any, seed: int) -> gym.Env[NDArray[np.uint8], int]:
    """Gymnasium's wrapper on a console that is seeded as kfrl's is; no no-ops, so that both start alike."""
    console = gym.make(
        f"ALE/{game}-v5",
        frameskip=1,
        repeat_action_probability=protocol.sticky,
        full_action_space=protocol.full_action_set,
        max_num_frames_per_episode=protocol.max_frames,
    )
    wrapped = AtariPreprocessing(console, noop_max=0, terminal_on_life_loss=False)
    console.unwrapped.ale.setInt("random_seed", seed)
    console.unwrapped.load_game()
    return FrameStackObservation(wrapped, 4, padding_type="zero")


@pytest.mark.parametrize(
    ("preset", "game"),
    [
        ("paper", "Breakout"),
        ("paper", "Seaquest"),
        ("nature", "Breakout"),
        ("machado", "Breakout"),
        ("machado", "Qbert"),
    ],
)
def test_the_others_are_gymnasiums_wrapper(preset: str, game: str) -> None:
    protocol = replace(get_protocol(preset, game), noop_max=0)
    theirs, ours = gymnasiums(game, protocol, 5), AtariEnvs(protocol, 1)
    (expected, _), seen = theirs.reset(), ours.reset(5)
    lives = theirs.unwrapped.ale.lives()
    for action in chosen("random", len(ours.actions), 1_000):
        np.testing.assert_array_equal(seen[0], expected)
        expected, reward, over, cut, _ = theirs.step(action)
        step = ours.step(np.array([action]))
        lives, before = theirs.unwrapped.ale.lives(), lives
        assert step.rewards[0] == np.clip(reward, -1, 1)
        assert step.terminated[0] == (over or (protocol.episodic_life and lives < before))
        assert step.truncated[0] == cut
        if over:
            assert step.final_obs is not None
            return
        seen = step.obs
    pytest.fail("no game ended")


@pytest.mark.parametrize("preset", ["paper", "nature", "sb3"])
def test_the_frame_cap_cuts_where_the_consoles_does(preset: str) -> None:
    short = replace(get_protocol(preset, "Freeway"), max_frames=42, noop_max=1)
    envs = AtariEnvs(short, 1)
    envs.reset(0)
    played = [envs.step(np.array([0])) for _ in range(11)]
    assert [step.truncated[0] for step in played] == [False] * 10 + [True]


def test_an_agent_of_sb3_plays_the_same_whoever_presses() -> None:
    protocol = replace(get_protocol("sb3", "Breakout"), noop_max=1)
    by_rule, twice = OwnEnvs(protocol, 1, ALE), OwnEnvs(protocol, 1, BASELINES.with_ale_screens())
    np.testing.assert_array_equal(by_rule.reset(0), twice.reset(0))
    for action in chosen("random", 4, 150):
        one, other = by_rule.step(np.array([action])), twice.step(np.array([action]))
        np.testing.assert_array_equal(one.obs, other.obs)
