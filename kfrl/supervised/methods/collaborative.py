"""Deep collaborative learning (Minami et al. 2019): nets that teach each other along the edges of a graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import UserError, unknown
from kfrl.losses.distillation import (
    GATES,
    attention_loss,
    attention_similarity,
    hint_loss,
    similarity,
    soft_target_loss,
)
from kfrl.nets.adapters import build_transform
from kfrl.nets.hooks import Features, activation_of, layer_shapes, with_features
from kfrl.nets.images.classifier import Classifier
from kfrl.nets.images.ensemble import EnsembleNet, mean_logits
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.graphs import ENSEMBLE, FEATURES, LABELS, Edge, Graph, Node, read_graph, with_other_edges
from kfrl.supervised.methods.base import Method, Predictor, Progress, Task, check_same_classes

MAPS = {"attention": attention_loss, "attention-apart": attention_similarity}
"""Losses of edges between feature maps."""


@dataclass(frozen=True)
class Settings(Graph):
    """Deep collaborative learning. The graph is given in YAML."""

    graph: Path | None = None
    """A YAML file of nodes, edges and edge_temperature, e.g. from `kfrl supervised search`; it replaces the graph of
    --config."""


class Collaborative(Method[nn.ModuleDict]):
    """L_t = sum over the edges s -> t of the mean over the batch of G_st(KL[p_s || p_t]); p of the labels is one-hot.

    Frozen nodes are teachers; the others train together. The first node is the student. An ensemble has the mean logits
    of the nodes that train, learns nothing itself, and teaches as any other node (Okamoto et al. 2022 use the sum).
    """

    takes_teachers = "any"
    Settings = Settings

    @classmethod
    def with_files(cls, config: SupervisedConfig) -> SupervisedConfig:
        """The settings, with the graph of `--graph` instead of the config's."""
        path = cls.read_settings(config).graph
        if path is None:
            return config
        return replace(config, methods={**config.methods, cls.section(): asdict(read_graph(path))})

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.ModuleDict:
        """A new net for every node that trains.

        Raises:
            UserError: a graph that is not valid, see `check_graph`; an unknown net; teachers of other classes.
        """
        self.teachers = tuple(teachers)
        self.graph = with_other_edges(self.own)
        check_same_classes("collaborative", task, teachers)
        check_graph(self.graph, [teacher.name for teacher in teachers])
        nodes = self.graph.nodes
        self.target = nodes[0]
        self.frozen = {node.name: _teacher_of(node, teachers) for node in nodes if node.teacher is not None}
        self.ensembles = [node.name for node in nodes if node.net == ENSEMBLE]
        fresh = [(i, node) for i, node in enumerate(nodes) if node.name not in (*self.frozen, *self.ensembles)]
        # Numbered, because a ModuleDict refuses some names, e.g. those with a dot.
        self.trained = {node.name: f"node_{i}" for i, node in fresh}
        made = nn.ModuleDict({self.trained[node.name]: task.make_net(node.net) for _, node in fresh})
        nets = {name: teacher.net for name, teacher in self.frozen.items()}
        nets |= {name: made[key] for name, key in self.trained.items()}
        inner = [edge for edge in self.graph.edges if edge.loss in (*MAPS, FEATURES) and edge.gate != "cutoff"]
        layers = {edge: _layers_of(edge, nets, task) for edge in inner}
        self._layers = {edge: (source.layer, target.layer) for edge, (source, target) in layers.items()}
        self._regressors = {edge: f"regressor_{i}" for i, edge in enumerate(inner) if edge.loss == FEATURES}
        for edge, key in self._regressors.items():
            source, target = layers[edge]
            made[key] = build_transform("conv1x1", target.shape, source.shape)
        return made

    def losses(self, net: nn.ModuleDict, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """One term for each edge; the source's outputs are constants."""
        outputs = {name: self._forward(name, teacher.net, batch.images) for name, teacher in self.frozen.items()}
        outputs |= {name: self._forward(name, net[key], batch.images) for name, key in self.trained.items()}
        for name in self.ensembles:
            outputs[name] = mean_logits([outputs[member][0].detach() for member in self.trained]), {}
        return {
            _term(edge): self._edge(net, edge, outputs, batch.labels, progress.in_run)
            for edge in self.graph.edges
            if edge.gate != "cutoff"
        }

    def _forward(self, name: str, net: nn.Module, images: Tensor) -> tuple[Tensor, Features]:
        """The logits of a node, and the activations that edges compare."""
        layers = {pair[0] for edge, pair in self._layers.items() if edge.source == name}
        layers |= {pair[1] for edge, pair in self._layers.items() if edge.target == name}
        with torch.set_grad_enabled(name in self.trained):
            logits, features = with_features(net, sorted(layers), images)
        return logits, {layer: activation_of(net, layer, z) for layer, z in features.items()}

    def _edge(
        self,
        net: nn.ModuleDict,
        edge: Edge,
        outputs: Mapping[str, tuple[Tensor, Features]],
        labels: Tensor,
        progress: float,
    ) -> Tensor:
        target, own = outputs[edge.target]
        if edge.source == LABELS:
            loss, right = F.cross_entropy(target, labels, reduction="none"), torch.ones_like(labels, dtype=torch.bool)
        else:
            source, theirs = outputs[edge.source]
            right = source.argmax(1) == labels
            if edge in self._layers:
                source_layer, target_layer = self._layers[edge]
                own_features, features = own[target_layer], theirs[source_layer].detach()
            if edge.loss in MAPS:
                loss = MAPS[edge.loss](own_features, features)
            elif edge.loss == FEATURES:
                guided = net[self._regressors[edge]](own_features, torch.ones((), device=features.device))
                loss = hint_loss(activation_of(self._net(net, edge.source), source_layer, guided), features)
            elif edge.loss == "apart":
                loss = similarity(target, source.detach())
            else:
                loss = soft_target_loss(target, source, self.graph.edge_temperature, self.graph.kl_direction)
        return GATES[edge.gate](loss, progress, right).mean()

    def _net(self, net: nn.ModuleDict, name: str) -> nn.Module:
        """The net of the node `name`."""
        return self.frozen[name].net if name in self.frozen else net[self.trained[name]]

    def export(self, net: nn.ModuleDict) -> nn.Module:
        """The target node's net; for an ensemble all nets that train, as one."""
        if self.target.name in self.ensembles:
            return EnsembleNet.of([net[key] for key in self.trained.values()])
        return copy.deepcopy(net[self.trained[self.target.name]])

    def shipped_net(self, task: Task) -> str:
        """The target node's net."""
        return self.target.net or task.net

    def others(self, net: nn.ModuleDict, final: bool) -> Mapping[str, Predictor]:
        """The other nodes that train."""
        return {name: net[key] for name, key in self.trained.items() if name != self.target.name}


def _teacher_of(node: Node, teachers: Sequence[Teacher]) -> Teacher:
    """The frozen net of a node.

    Raises:
        UserError: the teacher's net is not that of the node.
    """
    by_name = {teacher.name: teacher for teacher in teachers}
    found = teachers[node.teacher - 1] if isinstance(node.teacher, int) else by_name[str(node.teacher)]
    if node.net not in (None, found.card.net):
        raise UserError(
            f"Node {node.name!r} of the graph is a trained {node.net}, and the teacher {found.path} is a "
            f"{found.card.net}. Name another in --teachers, or leave out the node's net to take any."
        )
    return found


def _term(edge: Edge) -> str:
    """The name of an edge's loss term; several edges may lead from one node to another."""
    return f"{edge.source}_to_{edge.target}" + ("" if edge.loss == "kl" else f"_{edge.loss}".replace("-", "_"))


@dataclass(frozen=True)
class _Layer:
    """A layer that an edge reads, and the shape of its features without the batch dimension."""

    layer: str
    shape: tuple[int, ...]


def _layers_of(edge: Edge, nets: Mapping[str, nn.Module], task: Task) -> tuple[_Layer, _Layer]:
    """The layers of an edge's source and target whose attention maps or features it compares.

    Raises:
        UserError: a layer that does not exist, or one without a map where attention maps are compared.
    """
    if edge.source not in nets:
        kind = "features" if edge.loss == FEATURES else "attention maps"
        raise UserError(
            f"The edge {edge.source} -> {edge.target} has no {kind}: its source is not a net. Give it loss: kl."
        )
    maps = edge.loss != FEATURES
    source = _layer_of(edge.source, nets[edge.source], edge.source_layer, task, maps)
    return source, _layer_of(edge.target, nets[edge.target], edge.target_layer, task, maps)


def _layer_of(node: str, net: nn.Module, named: str | None, task: Task, maps: bool) -> _Layer:
    hidden = tuple(cast(Classifier, net).hidden_layers)
    layers = (named,) if named else hidden
    if named and named not in dict(net.named_modules()):
        raise unknown(f"layer of node {node!r}", named, hidden)
    shapes = layer_shapes(net, layers, torch.zeros(2, *task.shape, device=next(net.parameters()).device))
    suitable = [_Layer(layer, shape) for layer, shape in shapes.items() if len(shape) == 3 or not maps]
    if not suitable:
        raise UserError(
            f"Node {node!r} has no attention maps: the output of {', '.join(layers)} is a vector. Take a convolutional "
            "layer, or loss: kl."
        )
    return suitable[-1]


def check_graph(graph: Graph, teachers: Sequence[str]) -> None:
    """Refuse a graph that is not valid.

    Raises:
        UserError: no graph; a name given twice; an unknown teacher, gate, source or target; a frozen target; an edge
            into a frozen node or an ensemble; a node that learns from nothing; an ensemble of fewer than two nets.
    """
    if not graph.nodes:
        raise UserError(
            "collaborative needs a graph, given in a config or by --graph: see configs/supervised/collaborative.yaml "
            "and docs/supervised-methods.md."
        )
    names = [node.name for node in graph.nodes]
    twice = sorted({name for name in names if names.count(name) > 1 or name == LABELS})
    if twice:
        raise UserError(f"Every node of a graph needs a name of its own, and not {LABELS!r}; got {', '.join(names)}.")
    frozen = {node.name for node in graph.nodes if node.teacher is not None}
    ensembles = {node.name for node in graph.nodes if node.net == ENSEMBLE}
    for node in graph.nodes:
        _check_teacher(node, teachers)
    if names[0] in frozen:
        raise UserError(
            f"The first node of a graph is the student, but {names[0]!r} is frozen (teacher {graph.nodes[0].teacher!r})"
            " and learns nothing. Put a node without a teacher first."
        )
    for edge in graph.edges:
        _check_edge(edge, names, frozen, ensembles)
    taught = {edge.target for edge in graph.edges if edge.gate != "cutoff"}
    trained = [name for name in names if name not in frozen | ensembles]
    if ensembles and len(trained) < 2:
        raise UserError(f"The ensemble {min(ensembles)!r} needs at least two nodes that train, got {len(trained)}.")
    idle = [name for name in trained if name not in taught]
    if idle:
        raise UserError(
            f"Node {idle[0]!r} learns from nothing: give it an edge, e.g. from {LABELS}, or name a teacher for it."
        )


def _check_teacher(node: Node, teachers: Sequence[str]) -> None:
    if node.teacher is None:
        return
    if node.net == ENSEMBLE:
        raise UserError(f"Node {node.name!r} is an ensemble of the other nodes: it has no teacher.")
    if isinstance(node.teacher, int):
        if not 1 <= node.teacher <= len(teachers):
            raise UserError(
                f"Node {node.name!r} of the graph is teacher number {node.teacher}, and --teachers names "
                f"{len(teachers)}: {', '.join(teachers) or 'none'}. Add a trained {node.net or 'net'} to --teachers."
            )
    elif node.teacher not in teachers:
        raise unknown(f"teacher of node {node.name!r}", node.teacher, teachers, "Name it in --teachers.")


def _check_edge(edge: Edge, names: Sequence[str], frozen: set[str], ensembles: set[str]) -> None:
    if edge.gate not in GATES:
        raise unknown(f"gate of the edge {edge.source} -> {edge.target}", edge.gate, GATES)
    if edge.source not in (*names, LABELS):
        raise unknown(f"source of an edge to {edge.target!r}", edge.source, (*names, LABELS))
    if edge.target not in names:
        raise unknown(f"target of an edge from {edge.source!r}", edge.target, names)
    if edge.source == edge.target:
        raise UserError(f"The edge {edge.source} -> {edge.target} is not possible: a node teaches others, not itself.")
    if edge.target in frozen and edge.gate != "cutoff":
        raise UserError(f"Node {edge.target!r} is frozen: the edge from {edge.source!r} can teach it nothing.")
    if edge.target in ensembles and edge.gate != "cutoff":
        raise UserError(f"Node {edge.target!r} is an ensemble: the edge from {edge.source!r} can teach it nothing.")


METHOD = Collaborative
