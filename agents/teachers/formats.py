"""The native agent file and its card."""

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
    """What a file says of the agent in it."""

    game: str
    """The ROM's name."""
    actions: tuple[str, ...]
    """The actions by name, in the order of the logits."""
    arch: dict[str, Any]
    """What `build_net` needs."""
    steps: int = 0
    """Agent steps that it was trained for."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """The rules of its training."""
    preprocessing: Preprocessing = ALE
    """The pictures that it was trained on, and the buttons that its wrappers press for it."""
    curve: tuple[tuple[int, float], ...] = ()
    """(agent steps, mean raw return of the student alone) along its training."""
    trains_value: bool = True
    """Whether its value head was trained; it is a random one where not."""
    notes: str = ""
    caveat: str = ""
    """What its scores must not be quoted without."""

    @property
    def mean_score(self) -> float | None:
        """Mean raw score of the evaluation, if there was one."""
        mean = self.evaluation.get("mean")
        return mean if isinstance(mean, int | float) else None

    @property
    def scores(self) -> tuple[float, ...]:
        """The raw scores of that evaluation's games, if the file has them."""
        scores = self.evaluation.get("scores")
        return tuple(score for score in scores if isinstance(score, int | float)) if isinstance(scores, list) else ()


@dataclass(frozen=True)
class Teacher(SavedModel[Card]):
    """A loaded agent."""

    weights: Path | None = None
    """Of a layer table: the file of weights that it describes."""
    loaded: tuple[str, ...] = ()
    """Of another program's file: what became of each of its tensors."""

    @property
    def sha256(self) -> str:
        """The checksum of all that it was read from."""
        return sha256(self.path, self.weights) if self.weights and not self.checksum else super().sha256


def save_agent(path: Path, net: nn.Module, card: Card, half: bool = False) -> None:
    """Write `net` and its `card`, with `half` in half precision; the file is either whole or not there."""
    write_net(path, net, card, FORMAT, half)


def read_card(path: Path) -> Card:
    """Read only the header of an agent file.

    Raises:
        UserError: not a whole native agent file.
    """
    return read_net(path, Card, FORMAT, with_tensors=False)[0]


def load_agent(path: Path, name: str | None = None) -> Teacher:
    """Read an agent file into a net on the CPU, in evaluation mode.

    Args:
        path: The file.
        name: What to call it; by default the file's stem.

    Raises:
        UserError: missing, truncated, of a foreign format, or tensors that do not fit the architecture it names.
    """
    card, tensors = read_net(path, Card, FORMAT, with_tensors=True)
    net = load_tensors(path, build_net(card.arch, len(card.actions)), tensors)
    return Teacher(name or path.stem, net, card, path)


def is_native(path: Path) -> bool:
    """Whether a file says of itself that it is one of ours. False if it cannot be read."""
    return has_format(path, FORMAT)
