"""Convolutional actor-critic nets for Atari games."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.nets.init import HEAD_GAINS, orthogonal
from kfrl.nets.linear import Linear
from kfrl.nets.memory_format import channels_last, screens

PAPER_CONVS = ((16, 8, 4), (32, 4, 2))
"""(filters, kernel, stride): Mnih et al. 2016 and the Knowledge Flow paper, section 4.1."""


class MaxQ(nn.Module):
    """The value head for a Q-network: V(s) = max_a Q(s, a)."""

    def forward(self, q: Tensor) -> Tensor:
        """Q values (B, A) -> (B, 1)."""
        return q.amax(dim=1, keepdim=True)


class Body(nn.Module):
    """Convolutions and one fully connected layer.

    The output of each layer, a sub-module, is the PRE-activation z; `body` applies the ReLU. The initialisation is
    orthogonal (`kfrl.nets.init`).
    """

    def __init__(
        self, convs: Sequence[Sequence[int]], hidden: int = 256, frame_stack: int = 4, screen_size: int = 84
    ) -> None:
        """Build the layers.

        Args:
            convs: (filters, kernel, stride) per convolution.
            hidden: Units of the fully connected layer.
            frame_stack: Input channels.
            screen_size: Height and width of the input.

        Raises:
            ValueError: a convolution does not fit its input.
        """
        super().__init__()
        self.arch: dict[str, Any] = {
            "convs": [list(conv) for conv in convs],
            "hidden": hidden,
            "frame_stack": frame_stack,
            "screen_size": screen_size,
        }
        channels, size = frame_stack, screen_size
        conv_names = []
        for index, (filters, kernel, stride) in enumerate(convs, start=1):
            if min(filters, kernel, stride) < 1 or kernel > size:
                raise ValueError(
                    f"Expected a convolution of at least 1 filter, kernel 1 to {size} and stride 1 on its {size} x "
                    f"{size} input, got {filters} filters, kernel {kernel}, stride {stride}."
                )
            conv_names.append(f"conv{index}")
            self.add_module(conv_names[-1], nn.Conv2d(channels, filters, kernel, stride))
            channels, size = filters, (size - kernel) // stride + 1
        self._convs = tuple(conv_names)
        self.hidden_layers = (*conv_names, "fc")
        self.fc = Linear(channels * size * size, hidden)
        orthogonal(self)
        channels_last(self)

    def body(self, obs: Tensor) -> Tensor:
        """The features that the heads read: observations (B, stack, H, W) uint8 -> (B, hidden)."""
        h = screens(obs)
        for name in self._convs:
            h = F.relu(self.get_submodule(name)(h))
        # Flattened in NCHW order, the order of every published weight file.
        return F.relu(self.fc(h.flatten(1)))


class AtariNet(Body):
    """A body with a policy head and a value head.

    The default is the paper's net: 16 filters 8x8/4, 32 filters 4x4/2, 256 units; 681,027 parameters with 18 actions.
    """

    head_layers = ("policy", "value")

    def __init__(
        self,
        num_actions: int,
        convs: Sequence[Sequence[int]] = PAPER_CONVS,
        hidden: int = 256,
        frame_stack: int = 4,
        screen_size: int = 84,
        head: Literal["actor-critic", "q"] = "actor-critic",
    ) -> None:
        """Build the net.

        Args:
            num_actions: A, the number of policy logits.
            convs: Convolutions of the body; see `Body`.
            hidden: Units of the body's fully connected layer.
            frame_stack: Input channels.
            screen_size: Height and width of the input.
            head: `q`: a Q-network, whose `policy` layer gives Q values and whose `value` is their maximum.

        Raises:
            ValueError: a convolution does not fit its input, or the head is unknown.
        """
        if head not in ("actor-critic", "q"):
            raise ValueError(f"Expected head 'actor-critic' or 'q', got {head!r}.")
        super().__init__(convs, hidden, frame_stack, screen_size)
        self.head = head
        self.arch = {"family": "atari", **self.arch, "head": head}
        self.policy = nn.Linear(hidden, num_actions)
        self.value: nn.Module = MaxQ() if head == "q" else nn.Linear(hidden, 1)
        orthogonal(self.policy, {"": 1.0 if head == "q" else HEAD_GAINS["policy"]})
        orthogonal(self.value, {"": HEAD_GAINS["value"]})

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations (B, stack, H, W) uint8 to logits (B, A), or Q values, and values (B,)."""
        h = self.body(obs)
        logits = self.policy(h)
        return logits, self.value(logits if self.head == "q" else h).squeeze(1)


class MultiTaskNet(nn.Module):
    """An Atari net with an additional policy head on its body for each other task."""

    def __init__(self, student: AtariNet, outputs: Mapping[str, int]) -> None:
        """Add heads.

        Args:
            student: The net with the body and its own heads.
            outputs: Task -> number of its logits.
        """
        super().__init__()
        self.student = student
        hidden: int = student.arch["hidden"]
        self.policies = nn.ModuleDict({task: nn.Linear(hidden, count) for task, count in outputs.items()})
        orthogonal(self.policies, dict.fromkeys(outputs, HEAD_GAINS["policy"]))

    def forward(self, obs: Tensor, task: str | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, A) of `task`, or of the student's own task if None, and the student's values (B,)."""
        h = self.student.body(obs)
        policy = self.student.policy if task is None else self.policies[task]
        return policy(h), self.student.value(h).squeeze(1)
