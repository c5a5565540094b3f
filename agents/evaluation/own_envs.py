"""Environments with the preprocessing of an agent of another program: its screens, and the buttons it presses."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.atari import AtariEnvs, Transition
from envs.preprocessing import SCREEN, Preprocessing
from envs.protocols import Protocol


class OwnEnvs:
    """`AtariEnvs` with an agent's preprocessing; steps and points are counted as in `AtariEnvs`.

    A pressed button replaces the agent's action in that step. Under rules in which a lost life does not end the
    episode, buttons are pressed only at the start of a game. Under `Protocol.fire_reset`, the environment presses the
    buttons between two steps of the agent, so nothing is pressed here.
    """

    def __init__(
        self, protocol: Protocol, num_envs: int, preprocessing: Preprocessing, *, num_threads: int = 1
    ) -> None:
        """Create the environments; `reset` must come next."""
        self._own = preprocessing if preprocessing.luma is not None else None
        if self._own is None:
            self._envs = AtariEnvs(protocol, num_envs, num_threads=num_threads)
        else:
            newest = replace(protocol, frame_stack=1)
            self._envs = AtariEnvs(newest, num_envs, num_threads=num_threads, grayscale=False, native_screen=True)
        self.actions = self._envs.actions
        self._rules = protocol
        self._buttons = preprocessing.fire_reset and not protocol.fire_reset
        self._presses: list[deque[int]] = [deque() for _ in range(num_envs)]
        self._stacks = np.zeros((num_envs, protocol.frame_stack, SCREEN, SCREEN), dtype=np.uint8)

    def reset(self, seed: int) -> NDArray[np.uint8]:
        """Start K new games, game k seeded with `seed + k`. Returns observations (K, stack, 84, 84)."""
        obs = self._envs.reset(seed)
        for k in range(len(self._presses)):
            self._press(k, after_a_life=False)
        return self._see(obs, np.ones(len(obs), dtype=bool))

    def step(self, actions: NDArray[np.int64]) -> Transition:
        """Play one step in every game, with the due button or else the agent's action; `actions` (K,)."""
        pressing = np.array([bool(presses) for presses in self._presses])
        due = [presses.popleft() if presses else action for presses, action in zip(self._presses, actions, strict=True)]
        transition = self._envs.step(np.array(due))
        over = np.zeros(len(due), dtype=bool)
        over[[episode.env for episode in transition.episodes]] = True
        for k in np.flatnonzero(over | transition.terminated):
            self._press(int(k), after_a_life=not over[k])
        started = pressing & [not presses for presses in self._presses]
        if self._rules.fire_reset:
            started = transition.terminated
        return replace(transition, obs=self._see(transition.obs, over | started), final_obs=None)

    def _press(self, k: int, after_a_life: bool) -> None:
        if not self._buttons:
            return
        fire = [1, 2] if self.actions[1:2] == ("FIRE",) else []
        self._presses[k] = deque([0, *fire] if after_a_life else fire)

    def _see(self, obs: NDArray[np.uint8], started: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Preprocess the observations; the frame stack of a game that has `started` is cleared."""
        if self._own is None:
            return obs
        self._stacks[started] = 0
        self._stacks = np.roll(self._stacks, -1, axis=1)
        for k, screens in enumerate(obs):
            self._stacks[k, -1] = self._own.screen(screens[-1])
        seen: NDArray[np.uint8] = self._stacks.copy()
        return seen
