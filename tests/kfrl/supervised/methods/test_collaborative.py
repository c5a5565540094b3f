import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from kfrl.config import load_config
from kfrl.errors import UserError
from kfrl.losses.distillation import attention_loss, attention_similarity, similarity
from kfrl.nets.hooks import with_features
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.methods.base import Progress
from kfrl.supervised.methods.collaborative import Collaborative, Edge, Node, Settings, check_graph

A, B, OLD = Node("a"), Node("b", net="mlp-9"), Node("old", teacher="pets")
LEARNS = Edge("labels", "a")


def graph(*parts: Node | Edge) -> Settings:
    return Settings(
        tuple(part for part in parts if isinstance(part, Node)),
        tuple(part for part in parts if isinstance(part, Edge)),
    )


def collaborative(task, teachers, *parts: Node | Edge):
    method = Collaborative(SupervisedConfig(methods={"collaborative": asdict(graph(*parts))}))
    return method, method.build(task(), teachers)


def test_every_edge_is_a_gated_divergence_by_hand(task, taught, batch, says) -> None:
    # The frozen node is right about the first image (label 0) and wrong about the second (label 2).
    old = taught(says(*torch.tensor([[2.0, 1.0, 1.0], [4.0, 1.0, 1.0]]).log().tolist()))
    method, net = collaborative(
        task,
        [old],
        A,
        B,
        OLD,
        Edge("labels", "a", "through"),
        Edge("labels", "b", "linear"),
        Edge("old", "a", "correct"),
        Edge("b", "a", "linear"),
        Edge("a", "b", "cutoff"),
    )
    # The student is as good as even, yet right about the second image alone, which has to make no difference.
    net["node_0"], net["node_1"] = says([0.0, 0.0, 1e-4], [0.0, 0.0, 1e-4]), says([0.0] * 3, [0.0] * 3)
    terms = {name: float(t.detach()) for name, t in method.losses(net, batch, Progress(0, 0.9, 0.25)).items()}
    kl = 0.5 * math.log(0.5 * 3) + 2 * 0.25 * math.log(0.25 * 3)
    assert terms == pytest.approx(
        {
            "labels_to_a": math.log(3),
            "labels_to_b": 0.25 * math.log(3),
            "old_to_a": (kl + 0) / 2,
            "b_to_a": 0.0,
        },
        abs=1e-3,
    )


def test_knowledge_goes_along_an_edge_and_not_back(task, batch) -> None:
    method, net = collaborative(task, [], A, B, LEARNS, Edge("labels", "b"), Edge("b", "a"))
    terms = method.losses(net, batch, Progress(0, 0.0, 0.0))
    terms["b_to_a"].backward()
    assert float(net["node_0"].fc1.weight.grad.abs().sum()) > 0
    assert net["node_1"].fc1.weight.grad is None


def test_frozen_nodes_do_not_train_and_the_first_node_is_shipped(task, taught) -> None:
    method, net = collaborative(task, [taught()], A, OLD, B, LEARNS, Edge("old", "b"))
    assert [member.arch["hidden"] for member in net.values()] == [[6], [9]]
    assert torch.equal(method.export(net).fc1.weight, net["node_0"].fc1.weight)
    assert list(method.others(net, final=True)) == ["b"]


def test_distillation_is_a_graph_of_two_nodes(task, taught, batch, says) -> None:
    # T^2 KL at T = 2: the teacher's softened odds are e : 1 : 1, the student's even.
    teacher = taught(says([2.0, 0.0, 0.0], [2.0, 0.0, 0.0]))
    parts = graph(A, OLD, Edge("old", "a"))
    method = Collaborative(
        SupervisedConfig(
            methods={"collaborative": {"nodes": parts.nodes, "edges": parts.edges, "edge_temperature": 2.0}}
        )
    )
    net = method.build(task(), [teacher])
    net["node_0"] = says([0.0] * 3, [0.0] * 3)
    p = torch.tensor([math.e, 1.0, 1.0]) / (math.e + 2)
    loss = method.losses(net, batch, Progress(0, 0.0, 0.0))["old_to_a"]
    assert float(loss.detach()) == pytest.approx(4 * float((p * (3 * p).log()).sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((), "needs a graph, given in a config"),
        ((OLD, A, LEARNS), "'old' is frozen .* Put a node without a teacher first"),
        ((A, LEARNS, Edge("bb", "a")), "Unknown source of an edge to 'a' 'bb'"),
        ((A, LEARNS, Edge("label", "a")), "Did you mean 'labels'"),
        ((A, LEARNS, Edge("a", "c")), "Unknown target of an edge from 'a' 'c'"),
        (
            (A, Edge("labels", "a", "thr")),
            "Unknown gate .* 'thr'. Did you mean 'through'",
        ),
        ((A, LEARNS, Node("z", teacher="cats")), "Unknown teacher of node 'z' 'cats'"),
        ((A, B, LEARNS, Edge("a", "b", "cutoff")), "Node 'b' learns from nothing"),
        ((A, OLD, LEARNS, Edge("a", "old")), "'old' is frozen: the edge from 'a' can teach it nothing"),
        ((A, LEARNS, Edge("a", "a")), "a node teaches others, not itself"),
        ((A, A, LEARNS), "a name of its own"),
        ((Node("labels"), Edge("labels", "labels")), "not 'labels'"),
    ],
)
def test_a_graph_along_which_nothing_can_be_learned_is_refused(parts, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_graph(graph(*parts), ["pets"])


def test_a_cutoff_edge_into_a_frozen_node_is_fine() -> None:
    check_graph(graph(A, OLD, LEARNS, Edge("a", "old", "cutoff")), ["pets"])


def test_an_unknown_net_of_a_node_is_refused(task) -> None:
    with pytest.raises(UserError, match="Unknown net 'mpl-9'"):
        collaborative(task, [], Node("a", net="mpl-9"), LEARNS)


def test_names_that_a_module_could_not_have_are_fine(task, batch) -> None:
    name = Node("wide.net")
    method, net = collaborative(task, [], name, Edge("labels", "wide.net"))
    assert isinstance(net, nn.ModuleDict)
    assert list(method.losses(net, batch, Progress(0, 0.0, 0.0))) == ["labels_to_wide.net"]


def test_the_shipped_graph_is_sound() -> None:
    config = load_config(Path(__file__).parents[4] / "configs/supervised/collaborative.yaml", SupervisedConfig)
    graph = Collaborative(config).own
    check_graph(graph, config.teacher_names)
    assert [node.name for node in graph.nodes] == ["student", "large", "pretrained"]
    assert {edge.gate for edge in graph.edges} == {"through", "linear", "correct", "cutoff"}


def test_an_edge_between_layers_compares_attention_maps_and_an_edge_apart_outputs(task, taught, batch) -> None:
    old = taught("conv-5-7")
    parts = graph(
        Node("a", net="conv-4"),
        Node("b", net="resnet-8"),
        OLD,
        Edge("labels", "a"),
        Edge("old", "a", loss="attention", source_layer="layer1"),
        Edge("old", "b", loss="attention-apart", gate="negative-linear"),
        Edge("b", "a", loss="apart"),
    )
    method = Collaborative(SupervisedConfig(methods={"collaborative": asdict(parts)}))
    net = method.build(task(), [old])
    terms = method.losses(net, batch, Progress(0, 0.5, 0.5))
    assert set(terms) == {"labels_to_a", "old_to_a_attention", "old_to_b_attention_apart", "b_to_a_apart"}
    a, b = net["node_0"].train(), net["node_1"].train()
    wanted = attention_loss(a.layer1(batch.images), old.net.layer1(batch.images)).mean()
    torch.testing.assert_close(terms["old_to_a_attention"], wanted)
    maps = with_features(old.net, ["layer2"], batch.images)[1]["layer2"]
    mine = with_features(b, ["stage3"], batch.images)[1]["stage3"]
    torch.testing.assert_close(terms["old_to_b_attention_apart"], 0.5 * attention_similarity(mine, maps).mean())
    torch.testing.assert_close(terms["b_to_a_apart"], similarity(a(batch.images), b(batch.images)).mean())
    terms["b_to_a_apart"].backward()
    assert b.stem[0].weight.grad is None and a.head.weight.grad is not None


@pytest.mark.parametrize(
    ("edge", "words"),
    [
        (Edge("old", "a", loss="attention", source_layer="layer9"), "Unknown layer of node 'old' 'layer9'"),
        (Edge("old", "b", loss="attention"), "Node 'b' has no attention maps: fc1 give vectors"),
        (Edge("labels", "a", loss="attention"), "The edge labels -> a has no attention maps"),
    ],
)
def test_an_edge_to_a_layer_that_is_not_there_is_refused(task, taught, edge: Edge, words: str) -> None:
    nodes = (Node("a", net="conv-4"), B, OLD, LEARNS, Edge("labels", "b"))
    with pytest.raises(UserError, match=words):
        Collaborative(SupervisedConfig(methods={"collaborative": asdict(graph(*nodes, edge))})).build(
            task(), [taught("conv-5")]
        )
