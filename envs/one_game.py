"""Atari games in the caller's thread."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import ale_py
import cv2
import numpy as np
from ale_py import roms
from numpy.typing import NDArray

from envs.games import Game
from envs.protocols import Protocol

StepResult = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class OwnThread:
    """K games, stepped one after the other, with the interface of `AtariVectorEnv`.

    With one game it gives exactly the frames of that class for every seed, without its thread. The vector environment
    passes an action to its thread and waits for the result. With more workers than cores, each such switch lets another
    worker run and makes the caches cold: 16 workers lose a tenth of their rate.

    `fire_reset` and flavours need this class: ale-py's class presses FIRE only for one frame at the start of a game,
    and has no modes and difficulties.
    """

    def __init__(self, protocol: Protocol, num_envs: int, grayscale: bool = True, native_screen: bool = False) -> None:
        """Start the consoles; `reset` must come next. The arguments are those of `envs.atari.AtariEnvs`."""
        self._games = [OneGame(protocol, grayscale, native_screen) for _ in range(num_envs)]

    def get_action_set(self) -> list[ale_py.Action]:
        """The actions, in the order of their indices."""
        return self._games[0].actions

    def reset(self, *, seed: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start new games, game k seeded with `seed + k`.

        Returns:
            Observations (K, stack, H, W), and by name (K,): `lives`, `started` (see `step`).
        """
        started = [game.reset(seed + k) for k, game in enumerate(self._games)]
        return self._observations(), {"lives": self._lives(), "started": np.array(started)}

    def step(self, actions: NDArray[np.int64]) -> StepResult:
        """Play one agent step.

        Args:
            actions: (K,) indices into the action set.

        Returns:
            Observations (K, stack, H, W), of the next game if one ended; raw rewards, game over and truncated (K,); and
            by name: `lives` (K,); `pressed` and `started` (K,), raw points besides the reward, from buttons in the
            present game and from the start of the next; `final_obs` (K, stack, H, W) if a game ended.
        """
        steps = [game.step(action) for game, action in zip(self._games, actions, strict=True)]
        over = np.array([step.over for step in steps])
        cut = np.array([step.cut for step in steps])
        info = {"lives": self._lives()} | {
            name: np.array([getattr(step, name) for step in steps]) for name in ("pressed", "started")
        }
        obs = self._observations()
        if (over | cut).any():
            info["final_obs"] = np.stack(
                [seen if step.final_obs is None else step.final_obs for step, seen in zip(steps, obs, strict=True)]
            )
        return obs, np.array([step.reward for step in steps]), over, cut, info

    def _observations(self) -> NDArray[np.uint8]:
        return np.stack([game.stack for game in self._games])

    def _lives(self) -> NDArray[np.int32]:
        return np.array([game.lives for game in self._games], dtype=np.int32)


@dataclass
class Step:
    """The result of one step of one game."""

    reward: int
    over: bool
    cut: bool
    final_obs: NDArray[np.uint8] | None = None
    """(stack, H, W) the last observation of a game that ended."""
    pressed: int = 0
    """Points from the buttons that were pressed after a lost life."""
    started: int = 0
    """Points from the start of the next game."""


class OneGame:
    """One emulated game with automatic reset."""

    def __init__(self, protocol: Protocol, grayscale: bool, native_screen: bool) -> None:
        """Start the console; `reset` must come next."""
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._protocol = protocol
        game = Game(protocol.game)
        self._flavour = game.flavour
        rom = roms.get_rom_path(game.rom)
        assert rom is not None, "a protocol's game is one of the ROMs"
        self._rom = rom
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", protocol.sticky)
        self._ale.loadROM(self._rom)
        legal, minimal = self._ale.getLegalActionSet(), self._ale.getMinimalActionSet()
        self.actions: list[ale_py.Action] = legal if protocol.full_action_set else minimal
        self._buttons = self.actions[1:3] if protocol.fire_reset and ale_py.Action.FIRE in self.actions else []
        colours = () if grayscale else (3,)
        console = self._ale.getScreenDims()
        size = console if native_screen else (protocol.screen_size, protocol.screen_size)
        self._look = self._ale.getScreenGrayscale if grayscale else self._ale.getScreenRGB
        self._screens = np.zeros((2, *console, *colours), dtype=np.uint8)
        self.stack = np.zeros((protocol.frame_stack, *size, *colours), dtype=np.uint8)
        """(stack, H, W) the observation."""
        self._frames = 0

    @property
    def lives(self) -> int:
        """The remaining lives."""
        lives: int = self._ale.lives()
        return lives

    def reset(self, seed: int) -> int:
        """Start a new game; returns the points from its start."""
        self._ale.setInt("random_seed", seed)
        # NumPy's MT19937 generator with the same seeding as in C++.
        self._random = np.random.RandomState(seed)
        self._ale.loadROM(self._rom)
        if self._flavour is not None:
            # They take effect at the next `reset_game`; loading the ROM resets them to the default.
            self._ale.setMode(self._flavour.mode)
            self._ale.setDifficulty(self._flavour.difficulty)
        return self._start()

    def step(self, action: int) -> Step:
        """Play one agent step; if the game ends, start the next one."""
        lives = self.lives
        step = Step(*self._act(self.actions[action]))
        if step.over or step.cut:
            step.final_obs = self.stack.copy()
            step.started = self._start()
        elif self._protocol.fire_reset and self._life_lost(lives):
            step.final_obs = self.stack.copy()
            step.pressed, ended = self._press([ale_py.Action.NOOP, *self._buttons])
            if ended:
                step.over = True
                step.started = self._start()
            self._begin_stack()
        step.cut = step.cut and not step.over
        return step

    def _life_lost(self, before: int) -> bool:
        """Whether a lost life ends the learner's episode by SB3's rule; without lives only the game's end does."""
        return self._protocol.episodic_life and 0 < self.lives < before

    def _act(self, action: ale_py.Action) -> tuple[int, bool, bool]:
        reward, over, cut = 0, False, False
        for left in reversed(range(self._protocol.frame_skip)):
            reward += self._ale.act(action)
            self._frames += 1
            over, cut = self._ale.game_over(), self._frames >= self._protocol.max_frames
            if over or cut:
                break
            if left < 2:
                self._look(self._screens[left])
        self._see()
        return reward, over, cut

    def _press(self, buttons: list[ale_py.Action]) -> tuple[int, bool]:
        """Hold each button for one agent step, and NOOP after a life that is lost meanwhile.

        Returns:
            The points, and whether the game ended; if so, the remaining buttons are not pressed.
        """
        points, due = 0, deque(buttons)
        while due:
            button, lives = due.popleft(), self.lives
            reward, over, cut = self._act(button)
            points += reward
            if over or cut:
                return points, True
            if button != ale_py.Action.NOOP and self._life_lost(lives):
                due.appendleft(ale_py.Action.NOOP)
        return points, False

    def _start(self) -> int:
        """Start a game; with `fire_reset`, return the points from its no-ops and buttons, which count for the score."""
        points = self._power_on()
        pressed, ended = self._press(self._buttons)
        if ended:
            points, pressed = self._power_on(), 0
        self._begin_stack()
        return points + pressed if self._protocol.fire_reset else 0

    def _power_on(self) -> int:
        self._ale.reset_game()
        points = 0
        noops = self._draw_noops()
        for _ in range(noops):
            points += self._ale.act(ale_py.Action.NOOP)
            if self._ale.game_over():
                self._ale.reset_game()
                points = 0
        # SB3's frame cap counts the no-op frames, other protocols' caps do not.
        self._frames = noops if self._protocol.fire_reset else 0
        self._screens[:] = 0
        self._look(self._screens[0])
        self._see()
        return points

    def _draw_noops(self) -> int:
        """0 to `noop_max` no-ops (from 1 with `fire_reset`, as SB3), drawn as libstdc++'s uniform_int_distribution."""
        least = min(1, self._protocol.noop_max) if self._protocol.fire_reset else 0
        drawn = int(self._random.randint(2**32, dtype=np.uint32)) * (self._protocol.noop_max + 1 - least) >> 32
        return least + drawn

    def _begin_stack(self) -> None:
        """Clear all frames of the stack but the newest."""
        self.stack[:-1] = 0

    def _see(self) -> None:
        if self._protocol.max_pool:
            np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        self.stack[:-1] = self.stack[1:]
        newest = self.stack[-1]
        cv2.resize(self._screens[0], newest.shape[1::-1], dst=newest, interpolation=cv2.INTER_AREA)
