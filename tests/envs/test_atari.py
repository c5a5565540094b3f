from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.atari import ALL_ACTIONS, AtariEnvs, Transition, action_set, identify
from envs.protocols import Protocol, get_protocol
from kfrl.errors import UserError

ALIEN = get_protocol("paper", "Alien")
BREAKOUT = get_protocol("paper", "Breakout")
FIRE = 1


def random_actions(envs: AtariEnvs, steps: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(len(envs.actions), size=(steps, envs.num_envs))


def play(envs: AtariEnvs, steps: int, seed: int = 0) -> list[Transition]:
    envs.reset(seed)
    return [envs.step(actions) for actions in random_actions(envs, steps)]


def stacked(played: list[Transition], field: str) -> NDArray[np.float64]:
    """(T, K)"""
    return np.stack([getattr(step, field) for step in played])


def test_the_score_is_raw_where_the_learners_rewards_are_clipped() -> None:
    short = replace(ALIEN, max_frames=400)
    clipped = play(AtariEnvs(short, 2), 100)
    raw = play(AtariEnvs(replace(short, clip_rewards=False), 2), 100)
    rewards = stacked(raw, "rewards")
    assert rewards.max() >= 10, "random play of Alien eats dots of ten points"
    np.testing.assert_array_equal(stacked(clipped, "rewards"), np.clip(rewards, -1, 1))
    for played in (clipped, raw):
        assert [episode.score for episode in played[-1].episodes] == rewards.sum(axis=0).tolist()


def fire_until_game_over(envs: AtariEnvs) -> list[Transition]:
    envs.reset(0)
    played = [envs.step(np.array([FIRE]))]
    while not played[-1].episodes:
        played.append(envs.step(np.array([FIRE])))
    return played


def test_a_lost_life_ends_the_learners_episode_and_not_the_score() -> None:
    by_life = fire_until_game_over(AtariEnvs(BREAKOUT, 1))
    by_game = fire_until_game_over(AtariEnvs(replace(BREAKOUT, episodic_life=False), 1))
    assert stacked(by_life, "terminated").sum() == 5, "Breakout has five lives"
    assert stacked(by_game, "terminated").sum() == 1
    assert by_life[-1].terminated[0], "the last life is the game's end"
    assert by_life[-1].episodes == by_game[-1].episodes
    (episode,) = by_life[-1].episodes
    assert episode.steps == len(by_life)
    assert not episode.truncated


def test_the_frame_cap_truncates_and_shows_what_it_cut_off() -> None:
    envs = AtariEnvs(replace(ALIEN, max_frames=48), 2)
    *before, last = play(envs, 12)
    assert not stacked(before, "truncated").any()
    assert all(step.final_obs is None for step in before)
    assert last.truncated.all()
    assert not last.terminated.any()
    assert [(e.env, e.steps, e.truncated) for e in last.episodes] == [(0, 12, True), (1, 12, True)]
    assert last.final_obs is not None
    np.testing.assert_array_equal(last.final_obs[:, :-1], before[-1].obs[:, 1:])
    assert not last.obs[:, :-1].any(), "the next game starts with an empty stack"
    assert last.obs[:, -1].any()


def test_no_step_is_lost_between_two_games() -> None:
    # Under NEXT_STEP the second game would end at step 25, its first action ignored.
    played = play(AtariEnvs(replace(ALIEN, max_frames=48), 1), 36)
    assert np.flatnonzero(stacked(played, "truncated")).tolist() == [11, 23, 35]


def test_the_first_action_after_a_game_counts() -> None:
    envs = AtariEnvs(replace(BREAKOUT, max_frames=8, noop_max=0), 1)
    envs.reset(0)
    first = [envs.step(np.array([a])).final_obs for a in (0, 2)]
    moved = [envs.step(np.array([a])).final_obs for a in (2, 0)]
    assert first[1] is not None
    assert moved[1] is not None
    assert (first[1] != moved[1]).any(), "moving in the first step and in the second are two different games"


def test_steps_and_scores_start_anew_with_each_game() -> None:
    envs = AtariEnvs(replace(ALIEN, max_frames=200, clip_rewards=False), 1)
    played = play(envs, 100)
    rewards = stacked(played, "rewards").sum(axis=1)
    scores = [episode.score for step in played for episode in step.episodes]
    assert scores == [rewards[:50].sum(), rewards[50:].sum()]
    assert all(episode.steps == 50 for step in played for episode in step.episodes)


def test_a_reset_forgets_the_game_that_it_breaks_off() -> None:
    envs = AtariEnvs(replace(ALIEN, max_frames=200), 1)
    first = play(envs, 50)[-1].episodes
    assert first[0].score > 0
    play(envs, 40)
    assert play(envs, 50)[-1].episodes == first


def test_extra_lives_lost_to_the_frame_cap_are_not_a_death() -> None:
    envs = AtariEnvs(replace(ALIEN, max_frames=4), 1)
    envs.reset(0)
    envs._lives = np.array([9])  # earned; the next game starts with fewer
    step = envs.step(np.array([0]))
    assert step.truncated[0]
    assert not step.terminated[0]


def test_action_sets_are_the_games_own_or_all() -> None:
    assert action_set(get_protocol("paper", "Freeway")) == ("NOOP", "UP", "DOWN")
    assert action_set(get_protocol("paper", "Breakout")) == ("NOOP", "FIRE", "RIGHT", "LEFT")
    assert action_set(get_protocol("machado", "Freeway")) == ALL_ACTIONS
    assert len(ALL_ACTIONS) == 18


@pytest.mark.parametrize(
    ("actions", "names", "full"),
    [
        (4, ("NOOP", "FIRE", "RIGHT", "LEFT"), False),
        (18, ALL_ACTIONS, True),
        (("LEFT", "NOOP"), ("LEFT", "NOOP"), False),
        (("UP", "NOOP"), ("UP", "NOOP"), True),
    ],
)
def test_an_agent_is_identified_by_its_actions(
    actions: int | tuple[str, ...], names: tuple[str, ...], full: bool
) -> None:
    rom, found, rules = identify("Breakout", actions)
    assert (rom, found) == ("breakout", names)
    assert Protocol.from_dict(rules).full_action_set == full
    assert (rules["fingerprint"] == BREAKOUT.fingerprint) != full


@pytest.mark.parametrize(
    ("actions", "words"), [(5, "Breakout has 4"), (("NOOP", "LEFTT"), "'LEFTT'. Did you mean 'LEFT'")]
)
def test_actions_of_another_game_are_refused(actions: int | tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        identify("Breakout", actions)


@pytest.mark.parametrize("preset", ["paper", "machado"])
def test_a_seed_gives_the_same_games_whatever_the_threads(preset: str) -> None:
    protocol = replace(get_protocol(preset, "Alien"), max_frames=200)
    one, two = (play(AtariEnvs(protocol, 3, num_threads=n), 120, seed=5) for n in (1, 2))
    np.testing.assert_array_equal(stacked(one, "obs"), stacked(two, "obs"))
    assert [step.episodes for step in one] == [step.episodes for step in two]


@pytest.mark.parametrize("preset", ["paper", "machado"])
def test_another_seed_gives_other_games(preset: str) -> None:
    protocol = get_protocol(preset, "Alien")
    one, two = (play(AtariEnvs(protocol, 3), 40, seed=seed) for seed in (5, 6000))
    for k in range(3):
        assert (one[-1].obs[k] != two[-1].obs[k]).any()


def test_game_k_has_seed_plus_k() -> None:
    np.testing.assert_array_equal(AtariEnvs(ALIEN, 2).reset(7)[1], AtariEnvs(ALIEN, 1).reset(8)[0])


@pytest.mark.parametrize(("noop_max", "starts"), [(0, 1), (1, 2)])
def test_a_game_starts_with_up_to_noop_max_noops(noop_max: int, starts: int) -> None:
    obs = AtariEnvs(replace(ALIEN, noop_max=noop_max), 8).reset(0)
    assert len({start.tobytes() for start in obs}) == starts


@pytest.mark.parametrize("action", [-1, 4])
def test_an_action_outside_the_set_is_an_error_and_not_a_hang(action: int) -> None:
    envs = AtariEnvs(BREAKOUT, 2)
    envs.reset(0)
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        envs.step(np.array([0, action]))


def test_the_colour_screen_shows_the_same_games() -> None:
    protocol = replace(get_protocol("machado", "Alien"), max_frames=200)
    gray, colour = AtariEnvs(protocol, 2), AtariEnvs(protocol, 2, grayscale=False, native_screen=True)
    seen, shown = play(gray, 120), play(colour, 120)
    assert shown[0].obs.shape == (2, 4, 210, 160, 3)
    assert [step.episodes for step in seen] == [step.episodes for step in shown]
    assert any(step.episodes for step in seen)
    for field in ("rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(stacked(seen, field), stacked(shown, field))
