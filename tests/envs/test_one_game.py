from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.atari import AtariEnvs, Transition
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
