"""Links from teacher layers to student layers: the candidate sets L^j."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from kfrl.errors import UserError, unknown
from kfrl.nets.hooks import layer_shapes


@dataclass(frozen=True)
class Link:
    """One member of a candidate set: layer `layer` of teacher `teacher` feeds layer `student` of the student."""

    student: str
    teacher: str
    layer: str

    def __str__(self) -> str:
        """The link as text for logs and tables."""
        return f"{self.teacher}.{self.layer} -> {self.student}"


def hidden_layers(net: nn.Module) -> tuple[str, ...]:
    """The names of the sub-modules whose outputs are the net's hidden pre-activations, from input to output.

    These are the net's attribute `hidden_layers`, if it has one, else all convolutions and linear layers but the last.
    """
    named: tuple[str, ...] | None = getattr(net, "hidden_layers", None)
    if named is not None:
        return named
    weighted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return tuple(name for name, module in net.named_modules() if isinstance(module, weighted))[:-1]


def links_by_depth(student: nn.Module, teachers: Mapping[str, nn.Module], example: Tensor | None = None) -> list[Link]:
    """Link every hidden layer of the student to the layer of each teacher at the same relative depth.

    Layer j of L_0 is linked to layer round(j L_m / L_0) of a teacher with L_m layers, or to the first if that is 0.
    With an `example` input of both nets, a map is linked instead to the teacher's nearest map of the same size, if
    there is one: such a link needs no resize, and both maps show the same parts of the screen.

    Raises:
        UserError: the student or a teacher has no hidden layers.
    """
    student_layers = hidden_layers(student)
    if not student_layers:
        raise UserError(f"The student, a {type(student).__name__}, has no hidden layer to link to.")
    sizes = {} if example is None else _map_sizes(student, student_layers, example)
    links = []
    for depth, layer in enumerate(student_layers, start=1):
        for name, teacher in teachers.items():
            teacher_layers = hidden_layers(teacher)
            if not teacher_layers:
                raise UserError(f"Teacher {name!r} has no hidden layer to link from.")
            index = max(1, round(depth * len(teacher_layers) / len(student_layers))) - 1
            if layer in sizes and example is not None:
                theirs = _map_sizes(teacher, teacher_layers, example)
                same = [place for place, other in enumerate(teacher_layers) if theirs.get(other) == sizes[layer]]
                index = min(same, key=lambda place: abs(place - index), default=index)
            links.append(Link(layer, name, teacher_layers[index]))
    return links


def _map_sizes(net: nn.Module, layers: Iterable[str], example: Tensor) -> dict[str, tuple[int, ...]]:
    """Layer -> height and width, for those of `layers` whose outputs are maps."""
    return {layer: shape[1:] for layer, shape in layer_shapes(net, layers, example).items() if len(shape) == 3}


def check_links(links: Iterable[Link], student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
    """Refuse a link between layers that do not exist.

    Raises:
        UserError: the message names the valid layers or teachers.
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
