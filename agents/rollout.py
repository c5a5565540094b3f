"""Collection of rollouts: t_max steps of K games."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.batch import Context, Output, Rollout
from agents.methods.base import AnyMethod
from envs.atari import AtariEnvs, Transition
from kfrl.nets import state_size
from kfrl.nets.memory_format import screens


class Collector:
    """Plays games and collects rollouts; each rollout starts where the last one ended.

    A recurrent net has a state for each game, which goes on over rollouts. It is zero at the start of an episode as the
    learner sees it: after the end of a game and, under rules where a lost life ends the episode, after a lost life,
    because the return ends there too. The gradient goes back through a rollout and no further.
    """

    def __init__(
        self,
        envs: AtariEnvs,
        method: AnyMethod,
        net: nn.Module,
        t_max: int,
        seed: int,
        *,
        keep_graph: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start the games.

        Args:
            envs: K games.
            method: The method whose `features` and `forward` choose the actions.
            net: The learner's copy of the net.
            t_max: T.
            seed: Seed of the games and of the sampled actions.
            keep_graph: Keep the activations of the acting passes for the update, which then needs no forward pass.
                Valid only if the parameters do not change before the update.
            device: The device of the net and of the rollout.
        """
        self.envs, self.method, self.net, self.t_max = envs, method, net, t_max
        self._keep_graph, self._device = keep_graph, torch.device(device)
        size = state_size(net)
        self._state = torch.zeros(envs.num_envs, size, device=self._device) if size else None
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._previous_logits: Tensor | None = None
        self._context: Context | None = None
        self._features_of = method.features_of
        self._begin(envs.reset(seed))

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Play T steps with sampled actions."""
        if self.method.features_of != self._features_of:
            self._context, self._features_of = None, self.method.features_of
        start = self._state = None if self._state is None else self._state.detach()
        contexts, actions, outputs = [], [], []
        frames = self._frames
        transitions: list[Transition] = []
        truncated_values = torch.zeros(self.t_max, self.envs.num_envs, device=self._device)
        for t in range(self.t_max):
            context = self._features()
            with torch.set_grad_enabled(self._keep_graph):
                output, self._state = self._forward(self._seen, context)
            action = sample(self.method.acting_logits(output.logits.detach(), context), self._generator)
            transition = self.envs.step(action.cpu().numpy())
            if transition.final_obs is not None and transition.truncated.any():
                final = screens(self._pixels(transition.final_obs, np.empty_like(self._frames[0])))
                context_of_final = self.method.features(self.net, final)
                truncated_values[t] = self._forward(final, context_of_final)[0].values
            if self._state is not None:
                with torch.set_grad_enabled(self._keep_graph):
                    ended = self._tensor(transition.terminated | transition.truncated)
                    self._state = self._state.masked_fill(ended[:, None], 0.0)
            contexts.append(context)
            actions.append(action)
            outputs.append(output)
            transitions.append(transition)
            if t + 1 < self.t_max:
                self._see(transition.obs, t + 1)
            else:
                self._begin(transition.obs)
        with torch.set_grad_enabled(self._keep_graph):
            output = Output.joined(outputs)
        previous_logits = self._previous_logits
        after, _ = self._forward(self._seen, self._features())
        self._previous_logits = after.logits
        terminated, truncated = self._stack(transitions, "terminated"), self._stack(transitions, "truncated")
        return Rollout(
            obs=self._tensor(frames).permute(0, 1, 4, 2, 3).flatten(0, 1),
            contexts=contexts,
            actions=torch.cat(actions),
            output=output,
            episodes=tuple(episode for step in transitions for episode in step.episodes),
            num_envs=self.envs.num_envs,
            previous_logits=previous_logits,
            state=start,
            ended=None if start is None else terminated | truncated,
            rewards=self._stack(transitions, "rewards"),
            terminated=terminated,
            truncated=truncated,
            truncated_values=truncated_values,
            bootstrap=after.values,
        )

    def _forward(self, obs: Tensor, context: Context) -> tuple[Output, Tensor | None]:
        """The output on `obs`, and the states after it; None for a feed-forward net."""
        if self._state is None:
            return self.method.forward(self.net, obs, context), None
        return self.method.forward_with_state(self.net, obs, context, self._state)

    def _features(self) -> Context:
        """Features of the present observations, cached: the last observation of a rollout is the next one's first."""
        if self._context is None:
            self._context = self.method.features(self.net, self._seen)
        return self._context

    def _begin(self, obs: NDArray[np.uint8]) -> None:
        """Allocate a rollout's observations, and store the first."""
        games, stack, height, width = obs.shape
        self._frames = np.empty((self.t_max, games, height, width, stack), dtype=np.uint8)
        self._see(obs, 0)

    def _see(self, obs: NDArray[np.uint8], t: int) -> None:
        """Prepare the observations (K, stack, H, W) of step t: bytes for the rollout, floats for the nets."""
        self._seen = screens(self._pixels(obs, self._frames[t]))
        self._context = None

    def _pixels(self, obs: NDArray[np.uint8], interleaved: NDArray[np.uint8]) -> Tensor:
        """Copy `obs` into `interleaved`, with channels last: (K, H, W, stack)."""
        for stack, pixels in zip(obs, interleaved, strict=True):
            # Four times as fast as a transposing copy with NumPy or PyTorch.
            cv2.merge(tuple(stack), pixels)
        return self._tensor(interleaved).permute(0, 3, 1, 2)

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _stack(self, transitions: Sequence[Transition], field: str) -> Tensor:
        return self._tensor(np.stack([getattr(step, field) for step in transitions]))


class Stored:
    """A replacement for `Collector` when updates draw from stored answers: its rollouts only count steps."""

    def __init__(self, num_envs: int, t_max: int, actions: int, device: torch.device | str = "cpu") -> None:
        """Prepare an empty rollout of T steps of K games with A actions."""
        blank = torch.zeros(t_max, num_envs, device=device)
        samples = t_max * num_envs
        # The values require a gradient, so that the engine does not run the net to get one.
        values = torch.zeros(samples, device=device, requires_grad=True)
        self._rollout = Rollout(
            obs=torch.empty(samples, 0, device=device),
            contexts=((),),
            actions=torch.zeros(samples, dtype=torch.int64, device=device),
            output=Output(torch.zeros(samples, actions, device=device), values),
            episodes=(),
            num_envs=num_envs,
            rewards=blank,
            terminated=blank.bool(),
            truncated=blank.bool(),
            truncated_values=blank,
            bootstrap=blank[0],
        )

    def collect(self) -> Rollout:
        """Return the empty rollout."""
        return self._rollout


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw actions from softmax(logits) by the Gumbel-max rule: (K, A) -> (K,) int64.

    Unlike `torch.multinomial` it accepts non-finite logits; the following update is then dropped and counted.
    """
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(1)
