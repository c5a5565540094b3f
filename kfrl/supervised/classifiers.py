"""Trained classifiers as files: the net, its classes, and how its input is normalised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kfrl.nets import build_net
from kfrl.runs.cards import ModelCard, SavedModel, load_tensors, read_net, write_net

FORMAT = "kfrl-classifier-1"


@dataclass(frozen=True)
class Card(ModelCard):
    """What a file says of the classifier in it."""

    data: str
    """The data set."""
    classes: tuple[str, ...]
    """By name, in the order of the logits."""
    arch: dict[str, Any]
    """What `build_net` needs."""
    input_shape: tuple[int, int, int]
    """(C, H, W)"""
    mean: tuple[float, ...]
    """The net takes (x - mean) / std, channel by channel, of pixels x in [0, 1]."""
    std: tuple[float, ...]
    net: str = "unknown"
    """The net's name."""
    epochs: int = 0
    """How many it was trained for."""
    validation_accuracy: float | None = None
    """Share of the validation images that it gets right; what teachers are chosen by."""


@dataclass(frozen=True)
class Teacher(SavedModel[Card]):
    """A loaded classifier."""

    adapted: tuple[str, ...] = ()
    """What is done to the student's images before it sees them, in words."""
    answers: Tensor | None = None
    """(N, K) stored logits on the run's training images, in the place of its net."""


def save_classifier(path: Path, net: nn.Module, card: Card) -> None:
    """Write `net` and its `card`; the file is either whole or not there."""
    write_net(path, net, card, FORMAT)


def read_card(path: Path) -> Card:
    """Read only the header of a classifier's file.

    Raises:
        UserError: not a whole file of that kind.
    """
    return read_net(path, Card, FORMAT, with_tensors=False)[0]


def load_classifier(path: Path) -> Teacher:
    """Read a file into a frozen net on the CPU, in evaluation mode, called after its data set.

    Raises:
        UserError: missing, truncated, of a foreign format, or tensors that do not fit the architecture it names.
    """
    card, tensors = read_net(path, Card, FORMAT, with_tensors=True)
    net = load_tensors(path, build_net(card.arch, len(card.classes)), tensors)
    return Teacher(card.data, net, card, path)
