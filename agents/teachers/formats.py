"""Kfrl's agent file and its card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from envs.preprocessing import ALE, Preprocessing
from kfrl.nets import build_net
from kfrl.runs.cards import ModelCard, SavedModel, has_format, load_tensors, read_net, write_net
from kfrl.runs.provenance import sha256

FORMAT = "kfrl-agent-1"


@dataclass(frozen=True)
class Card(ModelCard):
    """The card of an agent on a game."""

    game: str
    """The ROM's name."""
    actions: tuple[str, ...]
    """The actions by name, in the order of the logits."""
    arch: dict[str, Any]
    """The architecture block for `build_net`."""
    steps: int = 0
    """Agent steps of its training."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """The protocol of its training."""
    preprocessing: Preprocessing = ALE
    """Its preprocessing in training, and the buttons that its wrappers press."""
    curve: tuple[tuple[int, float], ...] = ()
    """(agent steps, mean raw return of the student alone) during training."""
    trains_value: bool = True
    """Whether its value head was trained; if not, its values are random."""
    notes: str = ""
    caveat: str = ""
    """A sentence that must be quoted with its scores."""

    @property
    def mean_score(self) -> float | None:
        """Mean raw score of the evaluation, if there was one."""
        mean = self.evaluation.get("mean")
        return mean if isinstance(mean, int | float) else None

    @property
    def scored_under(self) -> dict[str, Any]:
        """The protocol of its score; if the score does not name one, that of its training."""
        protocol: dict[str, Any] = self.evaluation.get("protocol", self.protocol)
        return protocol

    @property
    def scores(self) -> tuple[float, ...]:
        """The raw scores of that evaluation's games, if the file has them."""
        scores = self.evaluation.get("scores")
        return tuple(score for score in scores if isinstance(score, int | float)) if isinstance(scores, list) else ()


@dataclass(frozen=True)
class Teacher(SavedModel[Card]):
    """An agent on a game, loaded from its file."""

    weights: Path | None = None
    """The file of weights, if it was read through a layer table."""
    loaded: tuple[str, ...] = ()
    """How each tensor of another program's file was used, a line each."""

    @property
    def sha256(self) -> str:
        """The checksum of the files that it was read from."""
        return sha256(self.path, self.weights) if self.weights and not self.checksum else super().sha256


def save_agent(path: Path, net: nn.Module, card: Card, half: bool = False) -> None:
    """Write `net` and its `card` atomically, with `half` in half precision."""
    write_net(path, net, card, FORMAT, half)


def read_card(path: Path) -> Card:
    """Read only the header of an agent file.

    Raises:
        UserError: the file is not an agent file of kfrl, or is damaged.
    """
    return read_net(path, Card, FORMAT, with_tensors=False)[0]


def load_agent(path: Path, name: str | None = None) -> Teacher:
    """Read an agent file into a net on the CPU, in evaluation mode.

    Args:
        path: The file.
        name: Its name in the run; by default the file's stem.

    Raises:
        UserError: the file is missing, truncated or of another format, or its tensors do not fit its architecture.
    """
    card, tensors = read_net(path, Card, FORMAT, with_tensors=True)
    net = load_tensors(path, build_net(card.arch, len(card.actions)), tensors)
    return Teacher(name or path.stem, net, card, path)


def is_native(path: Path) -> bool:
    """Whether a file is an agent file of kfrl, according to its header. False if it cannot be read."""
    return has_format(path, FORMAT)
