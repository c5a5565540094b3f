"""Deep collaborative learning (Minami et al. 2019): nets that teach each other along the edges of a graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import Positive
from kfrl.errors import UserError, unknown
from kfrl.losses.distillation import GATES, attention_loss, attention_similarity, similarity, soft_target_loss
from kfrl.nets.hooks import Features, layer_shapes, with_features
from kfrl.nets.images.classifier import Classifier
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Method, Predictor, Progress, Task, check_same_classes

LABELS = "labels"
MAPS = {"attention": attention_loss, "attention-apart": attention_similarity}
"""Losses of edges between feature maps."""


@dataclass(frozen=True)
class Node:
    """A net of a knowledge transfer graph."""

    name: str
    net: str | None = None
    """By name; the student's by default."""
    teacher: str | None = None
    """One of --teachers: pre-trained and frozen."""


@dataclass(frozen=True)
class Edge:
    """Knowledge that goes from one node to another."""

    source: str
    """A node's name, or `labels`."""
    target: str
    gate: str = "through"
    """through, cutoff, linear, negative-linear or correct."""
    loss: Literal["kl", "apart", "attention", "attention-apart"] = "kl"
    """What is alike: the outputs, or the attention maps of a layer; apart: pushed away from each other (+)."""
    source_layer: str | None = None
    """attention: the source's layer. Default: its last hidden one that gives maps."""
    target_layer: str | None = None
    """attention: the target's layer, likewise."""


@dataclass(frozen=True)
class Settings:
    """Deep collaborative learning. The graph is given in YAML."""

    nodes: tuple[Node, ...] = ()
    """The first is the target: the student."""
    edges: tuple[Edge, ...] = ()
    edge_temperature: Positive = 1.0
    """T of the edges between nets."""


class Collaborative(Method[nn.ModuleDict]):
    """L_t = sum over the edges s -> t of the mean over the batch of G_st(KL[p_s || p_t]); p of the labels is one-hot.

    Frozen nodes are teachers; the others train together. The first node is the student.
    """

    takes_teachers = "any"
    Settings = Settings

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.ModuleDict:
        """A fresh net for every node that trains.

        Raises:
            UserError: a graph that cannot be, see `check_graph`; an unknown net; teachers of other classes.
        """
        self.teachers = tuple(teachers)
        self.graph = self.own
        check_same_classes("collaborative", task, teachers)
        check_graph(self.graph, [teacher.name for teacher in teachers])
        by_name = {teacher.name: teacher for teacher in teachers}
        self.frozen = {node.name: by_name[node.teacher] for node in self.graph.nodes if node.teacher}
        # Numbered, because a ModuleDict refuses some names, e.g. those with a dot.
        self.trained = {node.name: f"node_{i}" for i, node in enumerate(self.graph.nodes) if not node.teacher}
        made = nn.ModuleDict(
            {self.trained[node.name]: task.make_net(node.net) for node in self.graph.nodes if not node.teacher}
        )
        nets = {name: teacher.net for name, teacher in self.frozen.items()}
        nets |= {name: made[key] for name, key in self.trained.items()}
        self._layers = {edge: _layers_of(edge, nets, task) for edge in self.graph.edges if edge.loss in MAPS}
        return made

    def losses(self, net: nn.ModuleDict, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """A term an edge. What a source says is a constant."""
        said = {name: self._ask(name, teacher.net, batch.images) for name, teacher in self.frozen.items()}
        said |= {name: self._ask(name, net[key], batch.images) for name, key in self.trained.items()}
        return {
            _term(edge): self._edge(edge, said, batch.labels, progress.in_run)
            for edge in self.graph.edges
            if edge.gate != "cutoff"
        }

    def _ask(self, name: str, net: nn.Module, images: Tensor) -> tuple[Tensor, Features]:
        """The logits of a node, and its layers that edges read."""
        layers = {pair[0] for edge, pair in self._layers.items() if edge.source == name}
        layers |= {pair[1] for edge, pair in self._layers.items() if edge.target == name}
        with torch.set_grad_enabled(name in self.trained):
            logits, features = with_features(net, sorted(layers), images)
        return logits, features

    def _edge(self, edge: Edge, said: Mapping[str, tuple[Tensor, Features]], labels: Tensor, progress: float) -> Tensor:
        target, own = said[edge.target]
        if edge.source == LABELS:
            loss, right = F.cross_entropy(target, labels, reduction="none"), torch.ones_like(labels, dtype=torch.bool)
        else:
            source, theirs = said[edge.source]
            right = source.argmax(1) == labels
            if edge.loss in MAPS:
                source_layer, target_layer = self._layers[edge]
                loss = MAPS[edge.loss](own[target_layer], theirs[source_layer].detach())
            elif edge.loss == "apart":
                loss = similarity(target, source.detach())
            else:
                loss = soft_target_loss(target, source, self.graph.edge_temperature)
        return GATES[edge.gate](loss, progress, right).mean()

    def export(self, net: nn.ModuleDict) -> nn.Module:
        """The target node's net."""
        return copy.deepcopy(net[self.trained[self.graph.nodes[0].name]])

    def others(self, net: nn.ModuleDict, final: bool) -> Mapping[str, Predictor]:
        """The other nodes that train."""
        return {name: net[key] for name, key in list(self.trained.items())[1:]}


def _term(edge: Edge) -> str:
    """What an edge's loss is called: several edges may lead from one node to another."""
    return f"{edge.source}_to_{edge.target}" + ("" if edge.loss == "kl" else f"_{edge.loss}".replace("-", "_"))


def _layers_of(edge: Edge, nets: Mapping[str, nn.Module], task: Task) -> tuple[str, str]:
    """The layers of an edge's source and target whose attention maps it compares.

    Raises:
        UserError: a layer that is not there, or gives no maps.
    """
    if edge.source == LABELS:
        raise UserError(f"The edge {LABELS} -> {edge.target} has no attention maps: only nets have. Give it loss: kl.")
    source = _map_layer(edge.source, nets[edge.source], edge.source_layer, task)
    return source, _map_layer(edge.target, nets[edge.target], edge.target_layer, task)


def _map_layer(node: str, net: nn.Module, named: str | None, task: Task) -> str:
    hidden = tuple(cast(Classifier, net).hidden_layers)
    layers = (named,) if named else hidden
    if named and named not in dict(net.named_modules()):
        raise unknown(f"layer of node {node!r}", named, hidden)
    shapes = layer_shapes(net, layers, torch.zeros(2, *task.shape, device=next(net.parameters()).device))
    maps = [layer for layer, shape in shapes.items() if len(shape) == 3]
    if not maps:
        raise UserError(
            f"Node {node!r} has no attention maps: {', '.join(layers)} {'gives' if named else 'give'} vectors. Take a "
            "convolutional layer, or loss: kl."
        )
    return maps[-1]


def check_graph(graph: Settings, teachers: Sequence[str]) -> None:
    """Refuse a graph along which nothing can be learned.

    Raises:
        UserError: no graph; a name given twice; an unknown teacher, gate, source or target; a frozen target; an edge
            into a frozen node; a node that learns from nothing.
    """
    if not graph.nodes:
        raise UserError(
            "collaborative needs a graph, given in a config: see configs/supervised/collaborative.yaml and "
            "docs/supervised-methods.md."
        )
    names = [node.name for node in graph.nodes]
    twice = sorted({name for name in names if names.count(name) > 1 or name == LABELS})
    if twice:
        raise UserError(f"Every node of a graph needs a name of its own, and not {LABELS!r}; got {', '.join(names)}.")
    frozen = {node.name for node in graph.nodes if node.teacher}
    for node in graph.nodes:
        if node.teacher and node.teacher not in teachers:
            raise unknown(f"teacher of node {node.name!r}", node.teacher, teachers, "Name it in --teachers.")
    if names[0] in frozen:
        raise UserError(
            f"The first node of a graph is the student, but {names[0]!r} is frozen (teacher {graph.nodes[0].teacher!r})"
            " and learns nothing. Put a node without a teacher first."
        )
    for edge in graph.edges:
        _check_edge(edge, names, frozen)
    taught = {edge.target for edge in graph.edges if edge.gate != "cutoff"}
    idle = [name for name in names if name not in frozen | taught]
    if idle:
        raise UserError(
            f"Node {idle[0]!r} learns from nothing: give it an edge, e.g. from {LABELS}, or name a teacher for it."
        )


def _check_edge(edge: Edge, names: Sequence[str], frozen: set[str]) -> None:
    if edge.gate not in GATES:
        raise unknown(f"gate of the edge {edge.source} -> {edge.target}", edge.gate, GATES)
    if edge.source not in (*names, LABELS):
        raise unknown(f"source of an edge to {edge.target!r}", edge.source, (*names, LABELS))
    if edge.target not in names:
        raise unknown(f"target of an edge from {edge.source!r}", edge.target, names)
    if edge.source == edge.target:
        raise UserError(f"The edge {edge.source} -> {edge.target} leads nowhere: a node teaches others, not itself.")
    if edge.target in frozen and edge.gate != "cutoff":
        raise UserError(f"Node {edge.target!r} is frozen: the edge from {edge.source!r} can teach it nothing.")


METHOD = Collaborative
