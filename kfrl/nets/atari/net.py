"""The actor-critic convolutional nets of the Atari literature."""

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
    """The value head of a Q-network: V(s) = max_a Q(s, a)."""

    def forward(self, q: Tensor) -> Tensor:
        """Q values (B, A) -> (B, 1)."""
        return q.amax(dim=1, keepdim=True)


class Body(nn.Module):
    """Convolutions and one fully connected layer.

    Each layer is a sub-module of its own whose output is the PRE-activation z; ReLU follows in `body`. Weights start
    orthogonal (`initial.orthogonal`).
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
            ValueError: a convolution that does not fit on its input.
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
        """What heads see: observations (B, stack, H, W) uint8 -> (B, hidden)."""
        h = screens(obs)
        for name in self._convs:
            h = F.relu(self.get_submodule(name)(h))
        # Flattened in NCHW order, the order of every published weight file.
        return F.relu(self.fc(h.flatten(1)))


class AtariNet(Body):
    """A body with a policy head and a value head.

    The default is the paper's net: 16 8x8/4, 32 4x4/2, 256 units; 681,027 parameters with 18 actions.
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
            convs: Of the body, as the following; see `Body`.
            hidden: Units.
            frame_stack: Channels.
            screen_size: Pixels.
            head: `q`: a Q-network. Its `policy` layer gives Q values, its `value` is their maximum.

        Raises:
            ValueError: a convolution that does not fit on its input, or another head.
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
    """An Atari net whose body has more policy heads than its own, one for each other task."""

    def __init__(self, student: AtariNet, outputs: Mapping[str, int]) -> None:
        """Add heads.

        Args:
            student: Body and own heads.
            outputs: Task -> number of its logits.
        """
        super().__init__()
        self.student = student
        hidden: int = student.arch["hidden"]
        self.policies = nn.ModuleDict({task: nn.Linear(hidden, count) for task, count in outputs.items()})
        orthogonal(self.policies, dict.fromkeys(outputs, HEAD_GAINS["policy"]))

    def forward(self, obs: Tensor, task: str | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, A) of a task, or of the student's own, and the values (B,) of its own."""
        h = self.student.body(obs)
        policy = self.student.policy if task is None else self.policies[task]
        return policy(h), self.student.value(h).squeeze(1)
