from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

import agents.evaluation.play
from agents.evaluation.play import Evaluation, check_video_path, evaluate, policy_of, record
from agents.policies import EPSILON, Policy
from envs.atari import AtariEnvs, Episode
from envs.preprocessing import ALE, PRESETS
from envs.protocols import Protocol, get_protocol
from kfrl.compare.stats import bootstrap_interval
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.seeding import stream

ALIEN = replace(get_protocol("paper", "Alien"), max_frames=400)
BREAKOUT = get_protocol("paper", "Breakout")
ACTIONS = 18


def uniform(obs: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(obs), ACTIONS)


def always(action: int) -> Policy:
    """A policy that finds `action` a little better than the others."""
    return lambda obs: torch.eye(ACTIONS)[action].expand(len(obs), -1) * 0.1


class FakeEnvs:
    """Game k lasts `lengths[k]` steps and scores k; remembers what it was asked to do."""

    actions = ("NOOP", "FIRE")
    lengths: tuple[int, ...] = (1,)
    made: ClassVar[list[FakeEnvs]]

    def __init__(self, protocol: Protocol, num_envs: int, *, num_threads: int) -> None:
        self.num_envs, self.clock = num_envs, 0
        self.asked: list[NDArray[np.int64]] = []
        self.made.append(self)

    def obs(self) -> NDArray[np.uint8]:
        """Every picture holds its game's number."""
        return np.arange(self.num_envs, dtype=np.uint8)[:, None, None, None].repeat(4, axis=1)

    def reset(self, seed: int) -> NDArray[np.uint8]:
        self.seed = seed
        return self.obs()

    def step(self, actions: NDArray[np.int64]) -> SimpleNamespace:
        self.clock += 1
        self.asked.append(actions.copy())
        over = [k for k in range(self.num_envs) if self.clock % self.lengths[k] == 0]
        episodes = tuple(Episode(k, float(k), self.lengths[k], False) for k in over)
        return SimpleNamespace(obs=self.obs(), episodes=episodes)


@pytest.fixture
def fake_envs(monkeypatch: pytest.MonkeyPatch) -> type[FakeEnvs]:
    class Envs(FakeEnvs):
        made: ClassVar[list[FakeEnvs]] = []

    monkeypatch.setattr(agents.evaluation.play, "AtariEnvs", Envs)
    return Envs


def two_logits(obs: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(obs), 2)


# --- which games count --------------------------------------------------------------------------------------


def test_short_games_count_no_more_often_than_long_ones(fake_envs: type[FakeEnvs]) -> None:
    fake_envs.lengths = (5, 50, 1)
    result = evaluate(two_logits, BREAKOUT, episodes=8, num_envs=3)
    assert result.scores == (0, 0, 0, 1, 1, 1, 2, 2)
    assert result.steps == (5, 5, 5, 50, 50, 50, 1, 1)


@pytest.mark.parametrize(
    ("episodes", "num_envs", "shares"),
    [(30, None, [3] * 10), (7, None, [1] * 7), (5, 2, [3, 2]), (2, 8, [1, 1]), (12, 12, [1] * 12)],
)
def test_every_environment_plays_its_share(
    fake_envs: type[FakeEnvs], episodes: int, num_envs: int | None, shares: list[int]
) -> None:
    fake_envs.lengths = tuple(range(1, 13))
    result = evaluate(two_logits, BREAKOUT, episodes=episodes, num_envs=num_envs)
    assert np.bincount([game.env for game in result.games]).tolist() == shares
    assert (result.episodes, result.num_envs) == (episodes, len(shares))


def test_each_game_is_announced_once_when_it_ends(fake_envs: type[FakeEnvs]) -> None:
    fake_envs.lengths = (7, 2, 3)
    heard: list[Episode] = []
    evaluate(two_logits, BREAKOUT, episodes=4, num_envs=3, on_episode=heard.append)
    assert [game.env for game in heard] == [1, 2, 0, 0]


def test_a_finished_environment_costs_no_forward(fake_envs: type[FakeEnvs]) -> None:
    fake_envs.lengths = (2, 5, 3)
    seen: list[list[int]] = []

    def policy(obs: torch.Tensor) -> torch.Tensor:
        seen.append(obs[:, 0, 0, 0].tolist())
        return torch.nn.functional.one_hot(obs[:, 0, 0, 0].long() % 2, 2) * 99.0

    evaluate(policy, BREAKOUT, episodes=3, num_envs=3)
    assert seen == [[0, 1, 2], [0, 1, 2], [1, 2], [1], [1]]
    asked = [actions.tolist() for actions in fake_envs.made[0].asked]
    assert [actions[1] for actions in asked] == [1] * 5, "each game gets its own action"


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"episodes": -1}, {"num_envs": 0}])
def test_nothing_to_play_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"got .*{next(iter(wrong.values()))}"):
        evaluate(uniform, ALIEN, **wrong)


def test_neighbouring_seeds_share_no_game(fake_envs: type[FakeEnvs]) -> None:
    # Game k has the seed of game 0 plus k.
    for seed in range(3):
        evaluate(two_logits, BREAKOUT, episodes=1, seed=seed)
    seeds = sorted(envs.seed for envs in fake_envs.made)
    assert min(np.diff(seeds)) > 1_000


# --- how actions are chosen ---------------------------------------------------------------------------------


def test_greedy_takes_the_best_and_sampling_follows_the_probabilities(fake_envs: type[FakeEnvs]) -> None:
    fake_envs.lengths = (1000,) * 4

    def policy(obs: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.2, 0.8]).log().expand(len(obs), 2) + 5.0

    for greedy in (True, False):
        evaluate(policy, BREAKOUT, episodes=4, greedy=greedy)
    best, sampled = (np.concatenate(envs.asked) for envs in fake_envs.made)
    assert best.mean() == 1.0
    assert sampled.mean() == pytest.approx(0.8, abs=0.03)  # five standard deviations


def test_the_policy_runs_without_gradients(fake_envs: type[FakeEnvs]) -> None:
    layer = torch.nn.Linear(1, 2)
    seen = []

    def policy(obs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = layer(obs[:, 0, 0].float())
        seen.append(logits.requires_grad)
        return logits

    evaluate(policy, BREAKOUT, episodes=1)
    assert seen == [False]
    assert not torch.is_inference_mode_enabled()


def test_logits_for_other_actions_are_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(1, 18\); expected \(1, 4\), for NOOP, FIRE, RIGHT, LEFT"):
        evaluate(uniform, BREAKOUT, episodes=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("greedy", [True, False])
def test_broken_weights_are_refused(fake_envs: type[FakeEnvs], value: float, greedy: bool) -> None:
    with pytest.raises(UserError, match="not finite"):
        evaluate(lambda obs: two_logits(obs) + value, BREAKOUT, episodes=1, greedy=greedy)


def test_an_impossible_action_may_have_minus_infinity(fake_envs: type[FakeEnvs]) -> None:
    fake_envs.lengths = (50,)
    evaluate(lambda obs: torch.tensor([[0.0, -torch.inf]]), BREAKOUT, episodes=1)
    assert not np.concatenate(fake_envs.made[0].asked).any()


def test_a_net_plays_by_the_names_of_its_actions(obs: torch.Tensor) -> None:
    net = AtariNet(3, ((4, 8, 8),), 8)
    logits = net(obs)[0]
    own = ("LEFT", "NOOP", "FIRE")
    torch.testing.assert_close(policy_of(net, own, own)(obs), logits)
    played = policy_of(net, own, ("NOOP", "UP", "LEFT", "FIRE"))(obs)
    torch.testing.assert_close(played[:, [2, 0, 3]], logits)
    assert (played[:, 1] == -torch.inf).all()


def test_a_net_with_an_action_that_the_game_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"between 3 actions, but the game .* has 2 of them, without UP"):
        policy_of(AtariNet(3), ("NOOP", "UP", "FIRE"), ("NOOP", "FIRE"))


def test_a_q_network_is_greedy_but_for_epsilon(obs: torch.Tensor) -> None:
    net = AtariNet(3, ((4, 8, 8),), 8, head="q")
    q = net(obs)[0].detach()
    probabilities = policy_of(net, ("A", "B", "C"), ("C", "A", "B"))(obs).softmax(1)[:, [1, 2, 0]]
    expected = torch.full((2, 3), EPSILON / 3)
    expected[range(2), q.argmax(1)] += 1 - EPSILON
    assert float((q[0] - q[0].mean()).abs().max()) < 1, "its softmax would be next to random"
    torch.testing.assert_close(probabilities, expected)


# --- real games ---------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_games_whatever_the_threads() -> None:
    first, again, other = (
        evaluate(uniform, ALIEN, episodes=3, num_envs=2, seed=seed, num_threads=threads)
        for seed, threads in ((4, 1), (4, 2), (5, 1))
    )
    assert first == again
    assert first.scores != other.scores


def test_scores_are_raw_whatever_the_learner_sees() -> None:
    for_learning = evaluate(uniform, ALIEN, episodes=2)
    plain = replace(ALIEN, clip_rewards=False, episodic_life=False)
    assert for_learning.games == evaluate(uniform, plain, episodes=2).games
    assert max(for_learning.scores) >= 10, "random play of Alien eats dots of ten points"


def test_a_lost_life_is_not_an_episode() -> None:
    def fire(obs: torch.Tensor) -> torch.Tensor:
        return torch.eye(4)[1].expand(len(obs), -1)

    result = evaluate(fire, BREAKOUT, episodes=1, greedy=True)
    assert result.episodes == 1
    assert result.steps[0] > 100, "five lives of more than twenty steps each"
    assert result.truncated == 0


def test_games_at_the_frame_cap_are_counted() -> None:
    result = evaluate(uniform, replace(ALIEN, max_frames=40), episodes=3)
    assert (result.truncated, result.steps, result.frames) == (3, (10, 10, 10), 120)


def test_an_agent_sees_its_own_pictures() -> None:
    short = replace(BREAKOUT, max_frames=80)
    seen: dict[str, list[float]] = {"ale": [], "async-rl": [], "baselines": []}
    for name, means in seen.items():

        def policy(obs: torch.Tensor, means: list[float] = means) -> torch.Tensor:
            assert obs.shape[1:] == (4, 84, 84)
            means.append(float(obs[:, -1].float().mean()))
            return torch.zeros(len(obs), 4)

        result = evaluate(policy, short, episodes=2, preprocessing=PRESETS[name])
        assert result.preprocessing == PRESETS[name]
    assert seen["baselines"][0] == pytest.approx(seen["ale"][0])
    assert seen["async-rl"][0] != pytest.approx(seen["ale"][0], rel=0.05)


# --- what is reported ---------------------------------------------------------------------------------------


def example(protocol: Protocol, *scores: float) -> Evaluation:
    games = tuple(Episode(k, score, 100 + k, k == 1) for k, score in enumerate(scores))
    return Evaluation(protocol, greedy=False, seed=3, num_envs=len(games), games=games)


def test_the_report_says_everything_that_a_score_depends_on() -> None:
    result = example(BREAKOUT, 1.0, 5.0, 30.0)
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    low, high = bootstrap_interval([1.0, 5.0, 30.0], seed=3)
    expected: dict[str, Any] = {
        "game": "breakout",
        "episodes": 3,
        "scores": [1.0, 5.0, 30.0],
        "episode_steps": [100, 101, 102],
        "frames": 1212,
        "truncated": 1,
        "mean": 12.0,
        "median": 5.0,
        "min": 1.0,
        "max": 30.0,
        "ci_low": low,
        "ci_high": high,
        "human_normalised": pytest.approx((12.0 - 1.7) / (30.5 - 1.7)),
        "greedy": False,
        "seed": 3,
        "num_envs": 3,
    }
    assert {key: report[key] for key in expected} == expected
    assert report["std"] == pytest.approx(247**0.5)  # squared distances 121, 49, 324 over n - 1
    assert report["standard_error"] == pytest.approx(report["std"] / 3**0.5)
    assert report["reference"]["random"] == 1.7
    assert report["reference"]["human"] == 30.5
    assert "dqn_zoo" in report["reference"]["source"]
    assert Protocol.from_dict(report["protocol"]) == BREAKOUT
    assert report["protocol"]["fingerprint"] == BREAKOUT.fingerprint
    assert set(report["versions"]) == {"ale_py", "torch"}
    assert report["preprocessing"] == {"luma": None, "crop": None, "resize": "area", "fire_reset": False}
    assert result.preprocessing == ALE


def test_the_report_of_one_game_outside_atari_57_is_still_json() -> None:
    report = example(get_protocol("paper", "pacman"), 7.0).to_dict()
    json.dumps(report, allow_nan=False)
    assert (report["std"], report["ci_low"], report["human_normalised"], report["reference"]) == (None,) * 4


def printed(result: Evaluation) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(result.table("the student alone"))
    return capture.get()


def test_the_table_shows_the_score_and_its_rules() -> None:
    text = printed(example(BREAKOUT, 1.0, 5.0, 30.0))
    for shown in ("the student alone", "12.0", "35.8%", "random 1.7, human 30.5", BREAKOUT.fingerprint):
        assert shown in text
    assert "sampled" in text
    assert "1 games, at 108,000 frames" in text


def test_the_table_of_one_game_outside_atari_57() -> None:
    text = printed(example(get_protocol("paper", "pacman"), 7.0))
    assert "not one of Atari-57" in text
    assert "interval" not in text


# --- videos -------------------------------------------------------------------------------------------------

SHORT = replace(ALIEN, max_frames=240)
STEPS = 60


def test_an_mp4_has_a_frame_a_step_and_the_start(tmp_path: Path) -> None:
    score = record(uniform, SHORT, tmp_path / "new" / "play.mp4")
    video = cv2.VideoCapture(str(tmp_path / "new" / "play.mp4"))
    frames = []
    while (answer := video.read())[0]:
        frames.append(answer[1])
    assert len(frames) == STEPS + 1
    assert video.get(cv2.CAP_PROP_FPS) == 15
    assert frames[0].shape == (444, 320, 3)
    assert score >= 10, "points, and not clipped rewards"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["play.mp4"]


def test_a_gif_plays_as_long_as_the_game(tmp_path: Path) -> None:
    record(uniform, SHORT, tmp_path / "play.GIF")
    with Image.open(tmp_path / "play.GIF") as gif:
        assert gif.format == "GIF"
        assert gif.size == (320, 444)
        durations = []
        for index in range(gif.n_frames):  # Pillow makes one frame of equal neighbours
            gif.seek(index)
            durations.append(gif.info["duration"])
    assert len(durations) > STEPS / 2
    assert sum(durations) == pytest.approx((STEPS + 1) * 67, rel=0.11)  # a GIF counts hundredths of a second


def played_by_hand(protocol: Protocol, action: int, seed: int) -> Episode:
    envs = AtariEnvs(protocol, 1)
    envs.reset(stream(seed, 0))
    while not (episodes := envs.step(np.array([action])).episodes):
        pass
    return episodes[0]


@pytest.mark.parametrize("preset", ["paper", "machado"])
def test_the_score_is_the_recorded_games(preset: str, tmp_path: Path) -> None:
    protocol = replace(get_protocol(preset, "Alien"), max_frames=240)
    right = AtariEnvs(protocol, 1).actions.index("RIGHT")
    score = record(always(right), protocol, tmp_path / "play.mp4", seed=2, greedy=True)
    assert score == played_by_hand(protocol, right, 2).score > 0


def shown_frames(
    monkeypatch: pytest.MonkeyPatch, folder: Path, policy: Policy, protocol: Protocol, **options: int
) -> list[NDArray[np.uint8]]:
    frames: list[NDArray[np.uint8]] = []
    monkeypatch.setitem(agents.evaluation.play._WRITERS, ".mp4", lambda path, shown: frames.extend(shown))
    record(policy, protocol, folder / "play.mp4", **options)
    return frames


@pytest.mark.parametrize("preset", ["paper", "machado"])
def test_a_recording_shows_the_played_game_to_its_last_screen(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = replace(get_protocol(preset, "Alien"), max_frames=240)
    screen = AtariEnvs(protocol, 1, grayscale=False, native_screen=True)
    right = screen.actions.index("RIGHT")
    expected = [screen.reset(stream(2, 0))]
    for _ in range(STEPS):
        step = screen.step(np.array([right]))
        expected.append(step.obs if step.final_obs is None else step.final_obs)
    frames = shown_frames(monkeypatch, tmp_path, always(right), protocol, seed=2, greedy=True)
    assert len(frames) == len(expected)
    for frame, screens in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame[:420:2, ::2], screens[0, -1])
        np.testing.assert_array_equal(frame[1:420:2, 1::2], screens[0, -1])
    assert (frames[-1][420:] != frames[0][420:]).any(), "the score has changed"


def test_a_recording_stops_at_max_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(shown_frames(monkeypatch, tmp_path, uniform, SHORT, max_steps=9)) == 10


@pytest.mark.parametrize("name", ["play.avi", "play", "play.mp4.txt"])
def test_another_suffix_is_refused_before_anything_is_played(name: str, tmp_path: Path) -> None:
    def policy(obs: torch.Tensor) -> torch.Tensor:
        raise AssertionError("played")

    with pytest.raises(UserError, match=r"ends in \.mp4 or \.gif, got 'play"):
        check_video_path(tmp_path / name)
    with pytest.raises(UserError, match=r"Try 'play.*\.mp4'"):
        record(policy, SHORT, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_failure_leaves_the_previous_video(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"play{suffix}"
    path.write_text("the previous one")
    calls = 0

    def policy(obs: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("broken policy")
        return uniform(obs)

    with pytest.raises(RuntimeError, match="broken policy"):
        record(policy, SHORT, path)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [(path.name, "the previous one")]
