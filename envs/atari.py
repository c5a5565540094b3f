"""Vector environments of K Atari games: ale-py's in C++, or one in this thread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ale_py
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.games import Game
from envs.one_game import OwnThread
from envs.protocols import Protocol, get_protocol
from kfrl.errors import UserError, unknown


@dataclass(frozen=True)
class Episode:
    """One finished game, from power-on to game over or the frame cap."""

    env: int
    score: float
    """The sum of the game's raw rewards."""
    steps: int
    """Agent steps."""
    truncated: bool


@dataclass(frozen=True)
class Transition:
    """The result of one step of K environments. If an episode ended, `obs` already belongs to the next one."""

    obs: NDArray[np.uint8]
    """(K, stack, H, W)"""
    rewards: NDArray[np.float32]
    """(K,) rewards for the learner, clipped if the protocol clips them."""
    terminated: NDArray[np.bool_]
    """(K,) whether the learner's episode ended: game over, or a life lost with `episodic_life`. Bootstrap 0."""
    truncated: NDArray[np.bool_]
    """(K,) whether the frame cap ended the game. Bootstrap V(`final_obs`)."""
    final_obs: NDArray[np.uint8] | None
    """(K, stack, H, W) the last observation of the games that ended; None if none ended."""
    episodes: tuple[Episode, ...]
    """The games that ended in this step, with raw scores."""


class AtariEnvs:
    """K games of one protocol with automatic reset (Gymnasium's SAME_STEP mode).

    SAME_STEP, because NEXT_STEP gives one invalid transition per episode, in which the action after a terminal
    observation is ignored. Lives are tracked here, not in the emulator, so that a lost life can end the learner's
    episode while the game and its score continue.
    """

    def __init__(
        self,
        protocol: Protocol,
        num_envs: int,
        *,
        num_threads: int = 1,
        grayscale: bool = True,
        native_screen: bool = False,
    ) -> None:
        """Create the environments; `reset` must come next.

        Args:
            protocol: The rules.
            num_envs: K.
            num_threads: Emulator threads; 1 in an A3C worker. Games with `fire_reset` and flavours other than the
                default always run in this thread.
            grayscale: False: RGB frames, (K, stack, H, W, 3), for videos.
            native_screen: True: the console's screen of 210 x 160.
        """
        self.protocol = protocol
        self.num_envs = num_envs
        own_thread = protocol.fire_reset or Game(protocol.game).flavour is not None
        self.emulator: OwnThread | _Vector = (
            OwnThread(protocol, num_envs, grayscale, native_screen)
            if own_thread or (num_envs == 1 and grayscale and not native_screen)
            else _Vector(protocol, num_envs, num_threads, grayscale, native_screen)
        )
        self.actions: tuple[str, ...] = tuple(action.name for action in self.emulator.get_action_set())
        self._lives = np.zeros(num_envs, dtype=np.int32)
        self._scores = np.zeros(num_envs, dtype=np.float64)
        self._steps = np.zeros(num_envs, dtype=np.int64)

    def reset(self, seed: int) -> NDArray[np.uint8]:
        """Start K new games, game k seeded with `seed + k`. Returns observations (K, stack, H, W)."""
        obs: NDArray[np.uint8]
        obs, info = self.emulator.reset(seed=seed)
        self._lives = info["lives"]
        self._scores[:] = info.get("started", 0)
        self._steps[:] = 0
        return obs

    def step(self, actions: NDArray[np.int64]) -> Transition:
        """Play one agent step in every game; `actions` (K,) index `self.actions`.

        Raises:
            ValueError: an action is outside the set; ale-py would wait forever.
        """
        if actions.min() < 0 or actions.max() >= len(self.actions):
            raise ValueError(f"Expected actions in [0, {len(self.actions)}), got {actions}.")
        obs, raw, game_over, truncated, info = self.emulator.step(actions)
        self._scores += raw + info.get("pressed", 0)
        self._steps += 1
        terminated = game_over
        if self.protocol.episodic_life:
            terminated = game_over | (self._lost_lives(info["lives"]) & ~truncated)
        self._lives = info["lives"]
        episodes = self._finished(game_over, truncated)
        self._scores += info.get("started", 0)
        return Transition(
            obs=obs,
            rewards=(np.clip(raw, -1, 1) if self.protocol.clip_rewards else raw).astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            final_obs=info.get("final_obs"),
            episodes=episodes,
        )

    def _lost_lives(self, lives: NDArray[np.int32]) -> NDArray[np.bool_]:
        lost: NDArray[np.bool_] = lives < self._lives
        # With SB3's rule, a game that continues with 0 lives (Q*bert) stays one episode until its end.
        return lost & (lives > 0) if self.protocol.fire_reset else lost

    def _finished(self, game_over: NDArray[np.bool_], truncated: NDArray[np.bool_]) -> tuple[Episode, ...]:
        ended = np.flatnonzero(game_over | truncated)
        episodes = tuple(
            Episode(int(k), float(self._scores[k]), int(self._steps[k]), bool(truncated[k])) for k in ended
        )
        self._scores[ended] = 0
        self._steps[ended] = 0
        return episodes


class _Vector(AtariVectorEnv):
    """K games in C++, on ale-py's own threads."""

    def __init__(
        self, protocol: Protocol, num_envs: int, num_threads: int, grayscale: bool, native_screen: bool
    ) -> None:
        super().__init__(
            protocol.game,
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=protocol.max_frames,
            repeat_action_probability=protocol.sticky,
            full_action_space=protocol.full_action_set,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=210 if native_screen else protocol.screen_size,
            img_width=160 if native_screen else protocol.screen_size,
            grayscale=grayscale,
            stack_num=protocol.frame_stack,
            frameskip=protocol.frame_skip,
            maxpool=protocol.max_pool,
            # ale-py draws from [0, noop_max - 1].
            noop_max=protocol.noop_max + 1,
            episodic_life=False,
            reward_clipping=False,
            use_fire_reset=False,
        )

    def get_action_set(self) -> list[ale_py.Action]:
        actions: list[ale_py.Action] = self.ale.get_action_set()
        return actions


def action_set(protocol: Protocol) -> tuple[str, ...]:
    """The names of the actions under `protocol`, in the order of a policy's logits."""
    return AtariEnvs(protocol, 1).actions


ALL_ACTIONS: tuple[str, ...] = tuple(ale_py.Action.__members__)
"""The names of the 18 joystick actions; actions of different games are matched by these, never by index."""


def identify(game: str, actions: int | tuple[str, ...]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Infer the action names and the protocol of an agent from its game and its actions.

    Args:
        game: The game, in any spelling.
        actions: The number of its actions, or their names in the order of the logits.

    Returns:
        The game's name, the action names, and the paper's protocol, with the game's minimal actions if they suffice,
        else with all 18.

    Raises:
        UserError: there is no such game or action, or the number is neither that of the minimal set nor 18.
    """
    minimal = get_protocol("paper", game)
    names = action_set(minimal)
    for protocol in (minimal, replace(minimal, name="paper, 18 actions", full_action_set=True)):
        played = action_set(protocol)
        if isinstance(actions, int):
            if actions == len(played):
                return protocol.game, played, protocol.to_dict()
        elif set(actions) <= set(played):
            return protocol.game, actions, protocol.to_dict()
    if not isinstance(actions, int):
        raise unknown("action", next(name for name in actions if name not in ALL_ACTIONS), ALL_ACTIONS)
    raise UserError(
        f"The agent chooses between {actions} actions, but {Game(minimal.game).title} has {len(names)} "
        f"({', '.join(names)}), or 18 with the full action set. Give another game, or name the actions in a YAML layer "
        "table."
    )
