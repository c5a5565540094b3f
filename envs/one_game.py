"""One Atari game in the caller's own thread."""

from __future__ import annotations

from typing import Any

import ale_py
import cv2
import numpy as np
from ale_py import roms
from numpy.typing import NDArray

from envs.protocols import Protocol

StepResult = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class OneGame:
    """What `AtariVectorEnv` with one game is, frame for frame and seed for seed, without its thread.

    The vector environment hands an action to a thread of its own and waits for the answer. Where there are more workers
    than cores, both hand-overs let another worker in, and each finds its caches cold: 16 workers lose a tenth of their
    rate to it.
    """

    def __init__(self, protocol: Protocol) -> None:
        """Start the console; `reset` must come next."""
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._protocol = protocol
        rom = roms.get_rom_path(protocol.game)
        assert rom is not None, "a protocol's game is one of the ROMs"
        self._rom = rom
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", protocol.sticky)
        self._ale.loadROM(self._rom)
        legal, minimal = self._ale.getLegalActionSet(), self._ale.getMinimalActionSet()
        self._actions: list[ale_py.Action] = legal if protocol.full_action_set else minimal
        self._presses_fire = protocol.fire_reset and ale_py.Action.FIRE in self._actions
        self._screens = np.zeros((2, *self._ale.getScreenDims()), dtype=np.uint8)
        self._stack = np.zeros((protocol.frame_stack, protocol.screen_size, protocol.screen_size), dtype=np.uint8)
        self._frames = 0

    def get_action_set(self) -> list[ale_py.Action]:
        """The actions, in the order of their indices."""
        return self._actions

    def reset(self, *, seed: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start a new game. Returns its observation (1, stack, H, W), and its lives (1,)."""
        self._ale.setInt("random_seed", seed)
        # Of MT19937's generators in NumPy, the one that is seeded as C++'s is.
        self._random = np.random.RandomState(seed)
        self._ale.loadROM(self._rom)
        self._start()
        return self._observation(), {"lives": self._lives()}

    def step(self, actions: NDArray[np.int64]) -> StepResult:
        """Play one agent step.

        Args:
            actions: (1,) an index into the action set.

        Returns:
            The observation (1, stack, H, W), of the next game where this one ended; raw reward, game over and truncated
            (1,); lives, and `final_obs` where the game ended.
        """
        reward, over, cut = self._act(self._actions[actions[0]])
        info: dict[str, Any] = {}
        if over or cut:
            info["final_obs"] = self._observation()
            self._start()
        info["lives"] = self._lives()
        return self._observation(), np.array([reward]), np.array([over]), np.array([cut and not over]), info

    def _act(self, action: ale_py.Action) -> tuple[int, bool, bool]:
        reward, over, cut = 0, False, False
        for left in reversed(range(self._protocol.frame_skip)):
            reward += self._ale.act(action)
            self._frames += 1
            over, cut = self._ale.game_over(), self._frames >= self._protocol.max_frames
            if over or cut:
                break
            if left < 2:
                self._ale.getScreenGrayscale(self._screens[left])
        self._see()
        return reward, over, cut

    def _start(self) -> None:
        self._ale.reset_game()
        if self._presses_fire:
            self._ale.act(ale_py.Action.FIRE)
        for _ in range(self._draw_noops() - self._presses_fire):
            self._ale.act(ale_py.Action.NOOP)
            if self._ale.game_over():
                self._ale.reset_game()
        self._frames = 0
        self._stack[:] = 0
        self._screens[:] = 0
        self._ale.getScreenGrayscale(self._screens[0])
        self._see()

    def _draw_noops(self) -> int:
        """0 to `noop_max`, by the multiplication that libstdc++'s uniform_int_distribution makes."""
        return int(self._random.randint(2**32, dtype=np.uint32)) * (self._protocol.noop_max + 1) >> 32

    def _see(self) -> None:
        if self._protocol.max_pool:
            np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        self._stack[:-1] = self._stack[1:]
        newest = self._stack[-1]
        cv2.resize(self._screens[0], newest.shape[::-1], dst=newest, interpolation=cv2.INTER_AREA)

    def _observation(self) -> NDArray[np.uint8]:
        observation: NDArray[np.uint8] = self._stack[None].copy()
        return observation

    def _lives(self) -> NDArray[np.int32]:
        return np.array([self._ale.lives()], dtype=np.int32)
