"""Files of tabular students: a tree or a net, with all that is needed to classify a case."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.runs.cards import load_tensors, read_net, write_net
from kfrl.runs.provenance import sha256
from kfrl.tabular.tables import Attribute, Preparation
from kfrl.tabular.trees import Tree

FORMAT = "kfrl-tabular-1"
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Net:
    """A net as a student."""

    module: nn.Module
    arch: dict[str, Any]

    @torch.no_grad()
    def predict(self, columns: Numbers) -> Numbers:
        """Softmax of the net's logits."""
        self.module.eval()
        shaped = torch.as_tensor(columns, dtype=torch.float32)[:, :, None, None]
        return np.asarray(self.module(shaped).softmax(dim=1).numpy(), dtype=np.float64)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())


@dataclass(frozen=True)
class Card:
    """A tabular student's card: the header of its file."""

    data: str
    target: str
    classes: tuple[str, ...]
    """Names, in the order of the probabilities."""
    attributes: tuple[Attribute, ...]
    medians: tuple[float, ...]
    lows: tuple[float, ...]
    spans: tuple[float, ...]
    """Medians, lows and spans: see `Preparation`."""
    arch: dict[str, Any] | None = None
    """The argument of `build_net`; None for a tree."""
    method: str = "unknown"
    teacher: str = "none"
    teacher_sha256: tuple[str, ...] = ()
    """Checksum of the teacher's file; empty for a teacher that the run trained itself."""
    seed: int | None = None
    test: float | None = None
    """Share of the table's cases that are test cases."""
    train_cases: int | None = None
    """Number of training cases; with seed and test it determines which ones."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Errors on the first split's test cases."""
    commit: str = "unknown"

    @property
    def preparation(self) -> Preparation:
        """The preparation of the student's input."""
        return Preparation(self.attributes, self.medians, self.lows, self.spans)


@dataclass(frozen=True)
class Loaded:
    """A tabular student from a file."""

    student: Tree | Net
    card: Card
    path: Path

    @property
    def sha256(self) -> str:
        """The checksum of its file."""
        return sha256(self.path)

    def predict(self, values: Numbers) -> Numbers:
        """Values of a table's cases (n, attributes), as `values_like` gives them -> probabilities (n, classes)."""
        preparation = self.card.preparation
        return self.student.predict(preparation.encode(preparation.prepare(values)))


class _TreeBuffers(nn.Module):
    """A tree's arrays as a module's buffers."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        for name, array in vars(tree).items():
            self.register_buffer(name, torch.as_tensor(np.ascontiguousarray(array)))


def save_student(path: Path, student: Tree | Net, card: Card) -> None:
    """Write a student and its card, atomically."""
    write_net(path, student.module if isinstance(student, Net) else _TreeBuffers(student), card, FORMAT)


def read_card(path: Path) -> Card:
    """Read only the header of a student's file.

    Raises:
        UserError: a file that is truncated, damaged or of another format.
    """
    return read_net(path, Card, FORMAT, with_tensors=False)[0]


def load_student(path: Path) -> Loaded:
    """Read a student's file.

    Raises:
        UserError: a file that is missing, damaged or of another format, or tensors that do not fit its card.
    """
    card, tensors = read_net(path, Card, FORMAT, with_tensors=True)
    if card.arch is not None:
        net = load_tensors(path, build_net(card.arch, len(card.classes)), tensors)
        return Loaded(Net(net, card.arch), card, path)
    return Loaded(_tree(path, tensors, card), card, path)


def _tree(path: Path, tensors: dict[str, Tensor], card: Card) -> Tree:
    names = Tree.__dataclass_fields__
    if set(tensors) != set(names):
        raise UserError(f"{path}: expected a tree's arrays {', '.join(names)}, got {', '.join(sorted(tensors))}.")
    tree = Tree(**{name: tensors[name].numpy() for name in names})
    nodes, columns = np.arange(len(tree.column)), len(card.preparation.columns)
    inner = tree.column >= 0
    sound = (
        tree.shares.shape == (len(nodes), len(card.classes))
        and all(len(array) == len(nodes) for array in (tree.threshold, tree.left, tree.right, tree.reach))
        and bool((tree.column < columns).all())
        and all(_forward(links[inner], nodes[inner], len(nodes)) for links in (tree.left, tree.right))
    )
    if not sound:
        raise UserError(f"{path}: its arrays are not a tree of {columns} columns and {len(card.classes)} classes.")
    return tree


def _forward(links: NDArray[np.int64], nodes: NDArray[np.int64], count: int) -> bool:
    """Whether children come after their parents, so that every path ends."""
    return bool(((links > nodes) & (links < count)).all())
