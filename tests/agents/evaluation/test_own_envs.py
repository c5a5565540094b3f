import itertools
from dataclasses import replace

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from agents.evaluation.own_envs import OwnEnvs
from envs.atari import AtariEnvs
from envs.preprocessing import PRESETS, Preprocessing
from envs.protocols import get_protocol

BASELINES = PRESETS["baselines"]
BREAKOUT = replace(get_protocol("paper", "Breakout"), noop_max=0)
gym.register_envs(ale_py)


class ByThemselves(OwnEnvs):
    """One game that presses what is due at once, as wrappers do, so that a step is always the agent's."""

    def start(self) -> np.ndarray:
        return self.press_on(self.reset(0))

    def act(self, action: int) -> np.ndarray:
        return self.press_on(self.step(np.array([action])).obs)

    def press_on(self, obs: np.ndarray) -> np.ndarray:
        while self._presses[0]:
            obs = self.step(np.array([0])).obs
        return obs


@pytest.mark.parametrize(("game", "steps"), [("Breakout", 300), ("Freeway", 50), ("Seaquest", 100)])
def test_pictures_and_buttons_are_those_of_stable_baselines3(game: str, steps: int) -> None:
    def make() -> gym.Env[np.ndarray, int]:
        return AtariWrapper(gym.make(f"{game}NoFrameskip-v4"), noop_max=0)

    theirs = VecFrameStack(DummyVecEnv([make]), 4)
    ours = ByThemselves(replace(get_protocol("paper", game), noop_max=0), 1, BASELINES)
    expected, seen, lives = theirs.reset(), ours.start(), 0
    for action in np.random.default_rng(0).integers(3, size=steps):
        np.testing.assert_array_equal(seen, np.asarray(expected).transpose(0, 3, 1, 2))
        expected, _, done, _ = theirs.step(np.array([action]))
        lives += int(done[0])
        seen = ours.act(action)
    assert lives > 5 or game != "Breakout"


def test_ale_screens_with_buttons_are_the_plain_environments() -> None:
    ours, plain = OwnEnvs(BREAKOUT, 2, BASELINES.with_ale_screens()), AtariEnvs(BREAKOUT, 2)
    np.testing.assert_array_equal(ours.reset(0), plain.reset(0))
    # FIRE and RIGHT, whatever the agent says; after that its own actions.
    for given, played in ((0, 1), (3, 2), (3, 3), (2, 2)):
        step, expected = ours.step(np.array([given, given])), plain.step(np.array([played, played]))
        np.testing.assert_array_equal(step.obs, expected.obs)
        np.testing.assert_array_equal(step.rewards, expected.rewards)


def test_buttons_are_pressed_after_each_lost_life_and_each_game() -> None:
    envs = OwnEnvs(BREAKOUT, 2, BASELINES.with_ale_screens())
    envs.reset(0)
    games, lives = 0, 0
    while games < 2:
        step = envs.step(np.array([0, 0]))  # it never fires by itself: without the button a game would not end
        games += len(step.episodes)
        lives += int(step.terminated.sum())
    assert lives == 10


def test_without_buttons_the_agent_plays_alone() -> None:
    envs, plain = OwnEnvs(BREAKOUT, 1, Preprocessing()), AtariEnvs(BREAKOUT, 1)
    envs.reset(0), plain.reset(0)
    for action in (1, 2, 3, 0):
        np.testing.assert_array_equal(envs.step(np.array([action])).obs, plain.step(np.array([action])).obs)


def test_a_game_starts_with_an_empty_stack() -> None:
    protocol = replace(BREAKOUT, max_frames=40)
    envs = OwnEnvs(protocol, 1, PRESETS["async-rl"])
    played = [envs.reset(0)] + [envs.step(np.array([0])).obs for _ in range(12)]
    filled = [int((obs[0].max(axis=(1, 2)) > 0).sum()) for obs in played]
    assert filled == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 1, 2, 3]
    for before, after in itertools.pairwise(played[:10]):
        np.testing.assert_array_equal(before[:, 1:], after[:, :-1])
