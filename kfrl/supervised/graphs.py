"""Knowledge transfer graphs as files and as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from kfrl.config import Direction, Positive, load_config
from kfrl.errors import UserError
from kfrl.runs.atomic import replacing, write_text

LABELS = "labels"
"""The source of an edge whose loss is the cross-entropy with the labels."""
ENSEMBLE = "ensemble"
"""The `net` of a node that is the ensemble of the nodes that train."""
EdgeLoss = Literal["kl", "apart", "attention", "attention-apart", "features"]
LOSSES: tuple[EdgeLoss, ...] = get_args(EdgeLoss)
FEATURES = "features"
"""The loss of an edge from hidden features, by a regressor that trains with the target."""
COLOURS = {"through": "#1b6ca8", "linear": "#2e8b57", "negative-linear": "#b8860b", "correct": "#8e44ad"}
_DASHES: dict[str, Any] = {"kl": "solid", "apart": "dotted", "attention": "dashed", "attention-apart": "dashdot"}
_DASHES[FEATURES] = (0, (6, 2, 1, 2, 1, 2))


@dataclass(frozen=True)
class Node:
    """A node of a knowledge transfer graph: a net, or an ensemble."""

    name: str
    net: str | None = None
    """The net's name. Default: the student's net. `ensemble`: the mean logits of all nodes that train."""
    teacher: int | str | None = None
    """A pre-trained, frozen node: one of --teachers, by position (1 is the first) or name; of this `net`, if given."""


@dataclass(frozen=True)
class Edge:
    """An edge of a knowledge transfer graph: the source teaches the target."""

    source: str
    """A node's name, or `labels`."""
    target: str
    gate: str = "through"
    """through, cutoff, linear, negative-linear or correct."""
    loss: EdgeLoss = "kl"
    """kl: match outputs; attention: match the attention maps of a layer; features: match hidden features through a
    regressor; apart, attention-apart: push apart (+)."""
    source_layer: str | None = None
    """attention, features: the source's layer. Default: its last hidden layer; for attention its last one with maps."""
    target_layer: str | None = None
    """attention, features: the target's layer. Default: as for the source."""


@dataclass(frozen=True)
class Graph:
    """A knowledge transfer graph."""

    nodes: tuple[Node, ...] = ()
    """The first is the target: the student."""
    edges: tuple[Edge, ...] = ()
    other_edges: str = "cutoff"
    """Gate of the edges that are not listed, from labels and from every node to every node that can learn."""
    edge_temperature: Positive = 1.0
    """T of the edges between nets."""
    kl_direction: Direction = "forward"
    """Of the edges by kl. forward: KL[source || target], as in the paper; reverse: KL[target || source]; mixed: their
    mean."""


def with_other_edges(graph: Graph) -> Graph:
    """The graph with the edges of `other_edges` in its list of edges."""
    if graph.other_edges == "cutoff":
        return graph
    listed = {(edge.source, edge.target) for edge in graph.edges}
    learning = [node.name for node in graph.nodes if node.teacher is None and node.net != ENSEMBLE]
    pairs = [(source, target) for target in learning for source in (LABELS, *(node.name for node in graph.nodes))]
    others = [Edge(*pair, graph.other_edges) for pair in pairs if pair not in listed and pair[0] != pair[1]]
    return replace(graph, edges=(*graph.edges, *others), other_edges="cutoff")


def read_graph(path: Path) -> Graph:
    """The graph in a file.

    Raises:
        UserError: no such file, not YAML, an unknown key, or no nodes.
    """
    graph = load_config(path.expanduser(), Graph)
    if not graph.nodes:
        raise UserError(f"{path} holds no nodes. docs/supervised-methods.md describes a graph, under collaborative.")
    return graph


def plain_graph(graph: Graph) -> dict[str, Any]:
    """A graph as plain values, without those that are the defaults."""

    def plain_entry(entry: Node | Edge, default: Node | Edge) -> dict[str, Any]:
        defaults = asdict(default)
        needed = ("name", "source", "target", "gate")
        return {key: value for key, value in asdict(entry).items() if key in needed or value != defaults[key]}

    plain: dict[str, Any] = {
        "nodes": [plain_entry(node, Node("")) for node in graph.nodes],
        "edges": [plain_entry(edge, Edge("", "")) for edge in with_other_edges(graph).edges],
    }
    for name in ("edge_temperature", "kl_direction"):
        if getattr(graph, name) != getattr(Graph(), name):
            plain[name] = getattr(graph, name)
    return plain


def write_graph(path: Path, graph: Graph, notes: Sequence[str] = ()) -> None:
    """Write a graph as a file that `--graph` takes, below comments."""
    head = "".join(f"# {note}\n" for note in notes)
    write_text(path, head + yaml.safe_dump(plain_graph(graph), sort_keys=False))


def draw_graph(path: Path, graph: Graph, student: str, title: str = "") -> None:
    """Draw a graph as a PNG: nodes on a circle, an arrow for each open edge, and edges from labels inside the node.

    Args:
        path: The PNG file.
        graph: The graph.
        student: The net of nodes that name none.
        title: The picture's title.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    graph = with_other_edges(graph)
    places = _places([node.name for node in graph.nodes])
    edges = [edge for edge in graph.edges if edge.gate != "cutoff"]
    for node in graph.nodes:
        taught = [edge.gate for edge in edges if edge.source == LABELS and edge.target == node.name]
        _draw_node(axes, node, places[node.name], student, taught, node is graph.nodes[0])
    between = [edge for edge in edges if edge.source != LABELS]
    for edge in between:
        axes.annotate(
            "",
            places[edge.target],
            places[edge.source],
            arrowprops={
                "arrowstyle": "-|>",
                "mutation_scale": 18,
                "shrinkA": 34,
                "shrinkB": 34,
                "connectionstyle": "arc3,rad=0.18",
                "color": COLOURS[edge.gate],
                "linestyle": _DASHES[edge.loss],
                "linewidth": 1.8,
            },
        )
    keys = [Line2D([], [], color=COLOURS[gate], label=gate) for gate in COLOURS if gate in {e.gate for e in between}]
    kinds = {edge.loss for edge in between} - {"kl"}
    keys += [Line2D([], [], color="black", linestyle=_DASHES[loss], label=loss) for loss in _DASHES if loss in kinds]
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False)
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", title=title)
    axes.axis("off")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _places(names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The nodes' positions: the first on top, the others clockwise."""
    angles = [math.pi / 2 - 2 * math.pi * index / len(names) for index in range(len(names))]
    return {name: (math.cos(angle), math.sin(angle)) for name, angle in zip(names, angles, strict=True)}


def _draw_node(
    axes: Any, node: Node, place: tuple[float, float], student: str, taught: Sequence[str], target: bool
) -> None:
    frozen = node.teacher is not None
    lines = [node.name, node.net or (f"teacher {node.teacher}" if frozen else student)]
    lines += ["frozen"] if frozen else [f"{LABELS}: {gate}" for gate in taught]
    box = {
        "boxstyle": "round,pad=0.5",
        "facecolor": "#e6e6e6" if frozen else "#fff3d6" if target else "white",
        "edgecolor": "black",
        "linewidth": 2.2 if target else 1.0,
    }
    axes.text(*place, "\n".join(lines), ha="center", va="center", fontsize=9, bbox=box, zorder=3)
