"""Which teacher layer feeds which student layer: the candidate sets L^j."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from kfrl.errors import UserError, unknown


@dataclass(frozen=True)
class Link:
    """One member of a candidate set: layer `layer` of teacher `teacher` feeds layer `student` of the student."""

    student: str
    teacher: str
    layer: str

    def __str__(self) -> str:
        """As logs and tables show it."""
        return f"{self.teacher}.{self.layer} -> {self.student}"


def hidden_layers(net: nn.Module) -> tuple[str, ...]:
    """The names of the sub-modules whose outputs are the net's hidden pre-activations, input side first.

    A net may say so itself (`hidden_layers`); otherwise every convolution and linear layer counts but the last.
    """
    named: tuple[str, ...] | None = getattr(net, "hidden_layers", None)
    if named is not None:
        return named
    weighted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return tuple(name for name, module in net.named_modules() if isinstance(module, weighted))[:-1]


def links_by_depth(student: nn.Module, teachers: Mapping[str, nn.Module]) -> list[Link]:
    """Link every hidden layer of the student to the layer of each teacher at the same relative depth.

    Layer j of L_0 takes layer round(j L_m / L_0) of a teacher with L_m layers, at least the first.

    Raises:
        UserError: a student or a teacher without hidden layers.
    """
    student_layers = hidden_layers(student)
    if not student_layers:
        raise UserError(f"The student, a {type(student).__name__}, has no hidden layer to which a link could lead.")
    links = []
    for depth, layer in enumerate(student_layers, start=1):
        for name, teacher in teachers.items():
            teacher_layers = hidden_layers(teacher)
            if not teacher_layers:
                raise UserError(f"Teacher {name!r} has no hidden layer to learn from.")
            index = max(1, round(depth * len(teacher_layers) / len(student_layers)))
            links.append(Link(layer, name, teacher_layers[index - 1]))
    return links


def check_links(links: Iterable[Link], student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
    """Refuse a link between layers that do not exist.

    Raises:
        UserError: naming the layers, or teachers, that there are.
    """
    for link in links:
        _check_layer(link.student, student, "student layer")
        if link.teacher not in teachers:
            raise unknown("teacher in a link", link.teacher, teachers)
        _check_layer(link.layer, teachers[link.teacher], f"layer of teacher {link.teacher!r}")


def _check_layer(name: str, net: nn.Module, kind: str) -> None:
    layers = [layer for layer, _ in net.named_modules() if layer]
    if name not in layers:
        raise unknown(kind, name, layers)
