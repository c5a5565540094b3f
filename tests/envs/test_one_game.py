from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ale_py.env import AtariEnv

from envs.atari import AtariEnvs, Transition
from envs.games import find_game
from envs.protocols import Protocol, get_protocol

PRESETS = ("paper", "machado")


def played(protocol: Protocol, seed: int, steps: int, num_envs: int) -> tuple[np.ndarray, list[Transition]]:
    """The same actions in every game."""
    envs = AtariEnvs(protocol, num_envs)
    actions = np.random.default_rng(seed).integers(len(envs.actions), size=steps)
    return envs.reset(seed), [envs.step(np.full(num_envs, action)) for action in actions]


def assert_the_first_of_two_is_the_one_alone(protocol: Protocol, seed: int, steps: int) -> list[Transition]:
    first, alone = played(protocol, seed, steps, 1)
    first_of_two, beside = played(protocol, seed, steps, 2)
    np.testing.assert_array_equal(first, first_of_two[:1])
    for one, two in zip(alone, beside, strict=True):
        for field in ("obs", "rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field)[:1], err_msg=field)
        assert one.episodes == tuple(episode for episode in two.episodes if episode.env == 0)
        if one.episodes:
            np.testing.assert_array_equal(one.final_obs, two.final_obs[:1])
    return alone


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", [0, 7, 2_000_000_011])
def test_one_game_is_a_game_of_the_vector_environment(preset: str, seed: int) -> None:
    alone = assert_the_first_of_two_is_the_one_alone(get_protocol(preset, "Breakout"), seed, 500)
    assert sum(len(step.episodes) for step in alone) >= 2, "new games and their no-ops are in it"
    assert any(step.rewards[0] for step in alone)


def test_a_capped_game_ends_alike() -> None:
    # 50 frames are 12 steps and half a step.
    alone = assert_the_first_of_two_is_the_one_alone(replace(get_protocol("paper", "Alien"), max_frames=50), 3, 60)
    assert [step.truncated[0] for step in alone].count(True) == 4


@pytest.mark.parametrize("changes", [{"max_pool": False}, {"frame_skip": 1}, {"screen_size": 42, "frame_stack": 2}])
def test_other_pictures_are_alike(changes: dict[str, int]) -> None:
    # Seaquest's sprites flicker: without the maximum over two frames it is another picture.
    assert_the_first_of_two_is_the_one_alone(replace(get_protocol("paper", "Seaquest"), **changes), 1, 150)


def test_every_number_of_noops_is_drawn() -> None:
    envs = AtariEnvs(replace(get_protocol("paper", "Seaquest"), noop_max=3, frame_skip=1, max_frames=1), 1)
    envs.reset(0)
    starts = {envs.step(np.array([0])).obs.tobytes() for _ in range(60)}
    assert len(starts) == 4


def screens_of_ale(name: str, seed: int, actions: np.ndarray) -> list[np.ndarray]:
    """Of ale-py's own single environment, which knows modes and difficulties."""
    game = find_game(name)
    mode, difficulty = game.flavour_in_force
    env = AtariEnv(game.rom, mode, difficulty, obs_type="grayscale", frameskip=1, repeat_action_probability=0.0)
    env.ale.setInt("random_seed", seed)
    env.load_game()
    return [env.reset()[0], *(env.step(action)[0] for action in actions)]


@pytest.mark.parametrize("name", ["freeway:m1d0", "pong:m0d1"])
def test_a_flavour_shows_ales_screens_from_game_to_game(name: str) -> None:
    rules = {"noop_max": 0, "frame_skip": 1, "frame_stack": 1, "max_pool": False, "max_frames": 120}
    protocol = replace(get_protocol("paper", name), **rules)
    envs = AtariEnvs(protocol, 2, native_screen=True)
    actions = np.random.default_rng(0).integers(len(envs.actions), size=119)
    for _ in range(2):
        seen = [envs.reset(5), *(envs.step(np.full(2, action)).obs for action in actions)]
        expected = screens_of_ale(name, 5, actions)
        for ours, theirs in zip(seen, expected, strict=True):
            np.testing.assert_array_equal(ours[0, 0], theirs)
    # The cap starts the next game, which has to be of the flavour too.
    following = envs.step(np.zeros(2, dtype=np.int64))
    assert following.truncated.all()
    assert (following.obs[0, 0] == screens_of_ale(name, 5, np.array([], dtype=int))[0]).mean() > 0.99
    default = AtariEnvs(replace(protocol, game=find_game(name).rom), 2, native_screen=True)
    others = [default.reset(5), *(default.step(np.full(2, action)).obs for action in actions)]
    assert any((ours != theirs).any() for ours, theirs in zip(seen, others, strict=True))
