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
    """A classifier's card: the header of its file."""

    data: str
    """The data set."""
    classes: tuple[str, ...]
    """Names, in the order of the logits."""
    arch: dict[str, Any]
    """The argument of `build_net`."""
    input_shape: tuple[int, int, int]
    """(C, H, W)"""
    mean: tuple[float, ...]
    """The net's input is (x - mean) / std for each channel of pixels x in [0, 1]."""
    std: tuple[float, ...]
    net: str = "unknown"
    """The net's name."""
    epochs: int = 0
    """Number of training epochs."""
    validation_accuracy: float | None = None
    """Share of the validation images that it classifies correctly; teachers are chosen by it."""
    caveat: str = ""
    """A sentence that must be quoted with its scores."""


@dataclass(frozen=True)
class Teacher(SavedModel[Card]):
    """A classifier loaded from a file."""

    adapted: tuple[str, ...] = ()
    """The conversions of the student's images to the teacher's input, as text."""
    answers: Tensor | None = None
    """(N, K) stored logits on the run's training images, instead of its net's."""


def save_classifier(path: Path, net: nn.Module, card: Card) -> None:
    """Write `net` and its `card`, atomically."""
    write_net(path, net, card, FORMAT)


def read_card(path: Path) -> Card:
    """Read only the header of a classifier's file.

    Raises:
        UserError: a file that is truncated, damaged or of another format.
    """
    return read_net(path, Card, FORMAT, with_tensors=False)[0]


def load_classifier(path: Path) -> Teacher:
    """Read a file into a frozen net on the CPU, in evaluation mode, named after its data set.

    Raises:
        UserError: a file that is missing, truncated or of another format, or tensors that do not fit its card.
    """
    card, tensors = read_net(path, Card, FORMAT, with_tensors=True)
    net = load_tensors(path, build_net(card.arch, len(card.classes)), tensors)
    return Teacher(card.data, net, card, path)
