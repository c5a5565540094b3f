"""Evaluation of policies by whole games from no-op starts, with raw scores; and videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ale_py
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from torch import nn

from agents.evaluation.own_envs import OwnEnvs
from agents.policies import Player, Policy, matched_policy
from envs.atari import AtariEnvs, Episode
from envs.games import Game
from envs.preprocessing import ALE, Preprocessing
from envs.protocols import Protocol
from kfrl.compare.stats import (
    REFERENCE_FRAMES,
    REFERENCE_SOURCE,
    Summary,
    human_normalised,
    reference_of,
    reference_scores,
    summarise,
)
from kfrl.errors import UserError
from kfrl.runs.atomic import replacing
from kfrl.seeding import stream

Frame = NDArray[np.uint8]
"""(H, W, 3) RGB."""

SIDE_BY_SIDE = 10
FRAMES_PER_SECOND = 15
"""Frames of a video a second: agent steps a second at the console's 60 Hz and a frame skip of 4."""
UPSCALE = 2
CAPTION_HEIGHT = 24


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a policy by games: the games played, and the rules."""

    protocol: Protocol
    greedy: bool
    seed: int
    num_envs: int
    """Number of environments; together with the seed it determines the games."""
    games: tuple[Episode, ...]
    """The games, ordered by environment, then by time."""
    preprocessing: Preprocessing = ALE
    """The agent's preprocessing."""

    @property
    def episodes(self) -> int:
        """Number of games."""
        return len(self.games)

    @property
    def scores(self) -> tuple[float, ...]:
        """Raw points, game by game."""
        return tuple(game.score for game in self.games)

    @property
    def steps(self) -> tuple[int, ...]:
        """Agent steps, game by game."""
        return tuple(game.steps for game in self.games)

    @property
    def truncated(self) -> int:
        """Number of games that the frame cap ended."""
        return sum(game.truncated for game in self.games)

    @property
    def frames(self) -> int:
        """Emulator frames played, without the no-ops."""
        return sum(self.steps) * self.protocol.frame_skip

    @cached_property
    def summary(self) -> Summary:
        """Statistics of the scores; the interval is over games, so it is about this one agent."""
        return summarise(self.scores, seed=self.seed)

    @property
    def human_normalised(self) -> float | None:
        """The human-normalised mean score; None for a game outside Atari-57 or under another frame cap."""
        return human_normalised(self.summary.mean, self.protocol.game, self.protocol.max_frames)

    def to_dict(self) -> dict[str, Any]:
        """The evaluation for JSON; `mean` to `iqm` are raw points."""
        summary = asdict(self.summary)
        del summary["n"]
        reference = reference_of(self.protocol.game, self.protocol.max_frames)
        return {
            "game": self.protocol.game,
            "episodes": self.episodes,
            **summary,
            "human_normalised": self.human_normalised,
            "reference": None if reference is None else {**asdict(reference), "source": REFERENCE_SOURCE},
            "scores": list(self.scores),
            "episode_steps": list(self.steps),
            "truncated": self.truncated,
            "frames": self.frames,
            "greedy": self.greedy,
            "seed": self.seed,
            "num_envs": self.num_envs,
            "protocol": self.protocol.to_dict(),
            "preprocessing": asdict(self.preprocessing),
            "versions": {"ale_py": ale_py.__version__, "torch": torch.__version__},
        }

    def table(self, title: str = "") -> Table:
        """The table that `kfrl eval` prints."""
        table = Table(title=title or None, show_header=False, title_justify="left")
        table.add_column(style="bold")
        for row in self._rows():
            table.add_row(*row)
        return table

    def _rows(self) -> Iterator[tuple[str, str]]:
        found, protocol = self.summary, self.protocol
        yield "game", f"{Game(protocol.game).title}, played {self.episodes} times, seed {self.seed}"
        yield "actions", "the most probable" if self.greedy else "sampled"
        yield "mean", f"{found.mean:,.1f}" + ("" if found.std is None else f" (std {found.std:,.1f})")
        if found.ci_low is not None:
            yield "95 % interval", f"{found.ci_low:,.1f} to {found.ci_high:,.1f}, over this one agent's games"
        yield "median, IQM", f"{found.median:,.1f}, {found.iqm:,.1f}"
        yield "lowest, highest", f"{found.min:,.0f}, {found.max:,.0f}"
        yield "human-normalised", self._normalised()
        yield "length", f"{np.mean(self.steps):,.0f} steps a game, {self.frames:,} frames in all"
        if self.truncated:
            yield "cut off", f"{self.truncated} games, at {protocol.max_frames:,} frames"
        yield "protocol", f"{protocol.name}, fingerprint {protocol.fingerprint}"

    def _normalised(self) -> str:
        reference = reference_of(self.protocol.game, self.protocol.max_frames)
        if reference is None:
            game = Game(self.protocol.game)
            if game.flavour is not None:
                return f"not defined: the human played {Game(game.rom).title} in its default flavour"
            known = game.name in reference_scores()
            why = f"the human's games had {REFERENCE_FRAMES:,} frames" if known else "the game is not one of Atari-57"
            return f"not defined: {why}"
        return f"{self.human_normalised:.1%} (random {reference.random:,.1f}, human {reference.human:,.1f})"


def policy_of(net: nn.Module, actions: tuple[str, ...], played: tuple[str, ...]) -> Policy:
    """The policy of a net.

    See `matched_policy` for the arguments.

    Raises:
        UserError: the net has an action that the game lacks.
    """
    strange = sorted(set(actions) - set(played))
    if strange:
        raise UserError(
            f"The agent chooses between {len(actions)} actions, but the game under this protocol has {len(played)} of "
            f"them, without {', '.join(strange)}. Evaluate it under the protocol that it was trained with (leave "
            "--protocol out)."
        )
    return matched_policy(net, actions, played)


def evaluate(
    policy: Policy,
    protocol: Protocol,
    *,
    preprocessing: Preprocessing = ALE,
    episodes: int = 30,
    seed: int = 0,
    greedy: bool = False,
    num_envs: int | None = None,
    num_threads: int = 1,
    on_episode: Callable[[Episode], None] | None = None,
) -> Evaluation:
    """Play whole games and return their raw scores.

    The number of games of each environment is fixed in advance. Taking the first games to finish would prefer short
    games, which usually have low scores.

    Args:
        policy: The policy; called without gradients, on the observations of the unfinished games.
        protocol: The rules; life loss and reward clipping do not affect the score.
        preprocessing: The preprocessing of the policy's observations, and the buttons that are pressed for it.
        episodes: Number of games.
        seed: Seed of the games and of the sampled actions. The same seed and `num_envs` give the same games.
        greedy: Take the most probable action instead of sampling.
        num_envs: K, number of environments; by default 10, at most `episodes`.
        num_threads: Emulator threads; they affect only the speed.
        on_episode: Called with each game that counts, when it ends.

    Raises:
        UserError: no episodes, no environments, or logits that do not fit the game.
    """
    if episodes < 1 or (num_envs is not None and num_envs < 1):
        raise UserError(f"Expected at least 1 episode and 1 environment, got {episodes} and {num_envs}.")
    num_envs = min(num_envs or SIDE_BY_SIDE, episodes)
    remaining = np.bincount(np.arange(episodes) % num_envs)
    envs: AtariEnvs | OwnEnvs
    if preprocessing == ALE:
        envs = AtariEnvs(protocol, num_envs, num_threads=num_threads)
    else:
        envs = OwnEnvs(protocol, num_envs, preprocessing, num_threads=num_threads)
    generator, player = _generator(seed, greedy), Player(policy, num_envs)
    obs = envs.reset(stream(seed, 0))
    games: list[Episode] = []
    while remaining.any():
        playing = np.flatnonzero(remaining)
        actions = np.zeros(num_envs, dtype=np.int64)
        actions[playing] = _choose(player, obs[playing], playing, envs.actions, generator)
        transition = envs.step(actions)
        player.see(transition)
        obs = transition.obs
        for episode in transition.episodes:
            if remaining[episode.env]:
                remaining[episode.env] -= 1
                games.append(episode)
                if on_episode is not None:
                    on_episode(episode)
    games.sort(key=lambda game: game.env)
    return Evaluation(protocol, greedy, seed, num_envs, tuple(games), preprocessing)


def _generator(seed: int, greedy: bool) -> torch.Generator | None:
    return None if greedy else torch.Generator().manual_seed(stream(seed, 1))


def _choose(
    player: Player,
    obs: NDArray[np.uint8],
    games: NDArray[np.int64],
    actions: tuple[str, ...],
    generator: torch.Generator | None,
) -> NDArray[np.int64]:
    with torch.inference_mode():
        logits = player.logits(torch.from_numpy(obs), games).float().cpu()
        if logits.shape != (len(obs), len(actions)):
            raise UserError(
                f"The policy gave logits of shape {tuple(logits.shape)}; expected "
                f"{(len(obs), len(actions))}, for {', '.join(actions)}. "
                "Use the protocol that the policy was trained under."
            )
        probabilities = logits.softmax(dim=1)
        if probabilities.isnan().any():
            raise UserError("The policy gave logits that are not finite numbers. Use an earlier checkpoint.")
        if generator is None:
            chosen = logits.argmax(dim=1)
        else:
            chosen = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    return chosen.numpy()


def record(
    policy: Policy,
    protocol: Protocol,
    path: Path,
    *,
    seed: int = 0,
    greedy: bool = False,
    max_steps: int = 4_500,
) -> float:
    """Play one game and write a video of it atomically, with 15 steps a second.

    Args:
        policy: The policy.
        protocol: The rules.
        path: The file, .mp4 or .gif.
        seed: Seed of the game and of the sampled actions.
        greedy: Take the most probable action instead of sampling.
        max_steps: Most steps of the video; the default is five minutes.

    Returns:
        The raw score at the end of the video.

    Raises:
        UserError: another suffix, a file that cannot be written, or logits that do not fit the game.
    """
    check_video_path(path)
    screening = Screening(policy, protocol, seed, greedy, max_steps)
    with replacing(path) as temporary:
        _WRITERS[path.suffix.lower()](temporary, screening)
    return screening.score


def check_video_path(path: Path) -> None:
    """Refuse a file that `record` cannot write, before anything is played.

    Raises:
        UserError: the suffix is neither .mp4 nor .gif.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UserError(
            f"A video ends in {' or '.join(_WRITERS)}, got {path.name!r}. Try {path.with_suffix('.mp4').name!r}."
        )


class Screening:
    """One game as an iterator of colour frames (H, W, 3); `score` is the score so far."""

    def __init__(
        self, policy: Policy, protocol: Protocol, seed: int = 0, greedy: bool = False, max_steps: int = 4_500
    ) -> None:
        """Start a game; the arguments are those of `record`."""
        raw = replace(protocol, clip_rewards=False)
        self._player, self._max_steps, self._seed = Player(policy, 1), max_steps, seed
        self._generator = _generator(seed, greedy)
        self._game = AtariEnvs(raw, 1)
        # The same seed and actions give the same game twice: once for the policy, once for the video.
        self._screen = AtariEnvs(raw, 1, grayscale=False, native_screen=True)
        self.score = 0.0

    def __iter__(self) -> Iterator[Frame]:
        """Play the game; yields a frame for each step."""
        obs = self._game.reset(stream(self._seed, 0))
        yield _captioned(self._screen.reset(stream(self._seed, 0)), self.score)
        for _ in range(self._max_steps):
            action = _choose(self._player, obs, np.zeros(1, np.int64), self._game.actions, self._generator)
            played, shown = self._game.step(action), self._screen.step(action)
            self._player.see(played)
            obs = played.obs
            self.score += float(played.rewards[0])
            yield _captioned(shown.obs if shown.final_obs is None else shown.final_obs, self.score)
            if played.episodes:
                return


def _captioned(screens: NDArray[np.uint8], score: float) -> Frame:
    """The newest of the screens (1, stack, H, W, 3), enlarged, with the score below it."""
    large = screens[0, -1].repeat(UPSCALE, axis=0).repeat(UPSCALE, axis=1)
    frame = np.pad(large, ((0, CAPTION_HEIGHT), (0, 0), (0, 0)))
    place = (6, frame.shape[0] - 7)
    cv2.putText(frame, f"score {score:,.0f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
    return frame


def _write_mp4(path: Path, frames: Iterable[Frame]) -> None:
    pictures = iter(frames)
    first = next(pictures)
    size = (first.shape[1], first.shape[0])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_PER_SECOND, size)
    if not writer.isOpened():
        raise UserError("This build of OpenCV cannot write .mp4: write a .gif instead.")
    try:
        writer.write(cv2.cvtColor(first, cv2.COLOR_RGB2BGR))
        for frame in pictures:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()


def _write_gif(path: Path, frames: Iterable[Frame]) -> None:
    pictures = (Image.fromarray(frame) for frame in frames)
    milliseconds = round(1000 / FRAMES_PER_SECOND)
    next(pictures).save(path, save_all=True, append_images=pictures, duration=milliseconds, loop=0)


_WRITERS: dict[str, Callable[[Path, Iterable[Frame]], None]] = {".mp4": _write_mp4, ".gif": _write_gif}
