import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kfrl.config import load_config
from kfrl.errors import UserError
from kfrl.losses.distillation import attention_loss, attention_similarity, similarity
from kfrl.nets import build_net
from kfrl.nets.hooks import with_features
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.graphs import Edge, Graph, Node, read_graph, with_other_edges, write_graph
from kfrl.supervised.methods.base import Progress
from kfrl.supervised.methods.collaborative import Collaborative, check_graph

A, B, OLD = Node("a"), Node("b", net="mlp-9"), Node("old", teacher="pets")
ALL = Node("all", net="ensemble")
LEARNS = Edge("labels", "a")


def graph(*parts: Node | Edge) -> Graph:
    return Graph(
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
        ((A, LEARNS, Node("z", teacher=2)), "is teacher number 2, and --teachers names 1: pets"),
        ((ALL, A, LEARNS), "'all' needs at least two nodes that train, got 1"),
        ((ALL, A, B, LEARNS, Edge("labels", "b"), Edge("a", "all")), "'all' is an ensemble: the edge"),
        ((A, LEARNS, Node("z", net="ensemble", teacher=1)), "is an ensemble of the other nodes"),
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
    wanted = attention_loss(a.layer1(batch.images).relu(), old.net.layer1(batch.images).relu()).mean()
    torch.testing.assert_close(terms["old_to_a_attention"], wanted)
    maps = with_features(old.net, ["layer2"], batch.images)[1]["layer2"].relu()
    mine = with_features(b, ["stage3"], batch.images)[1]["stage3"].relu()
    torch.testing.assert_close(terms["old_to_b_attention_apart"], 0.5 * attention_similarity(mine, maps).mean())
    torch.testing.assert_close(terms["b_to_a_apart"], similarity(a(batch.images), b(batch.images)).mean())
    terms["b_to_a_apart"].backward()
    assert b.stem[0].weight.grad is None and a.head.weight.grad is not None


def test_an_edge_of_features_fits_a_regressor_to_the_source_which_nobody_ships(task, taught, batch) -> None:
    old = taught("conv-5-7")
    method, net = collaborative(
        task,
        [old],
        Node("a", net="conv-4"),
        B,
        OLD,
        LEARNS,
        Edge("labels", "b"),
        Edge("old", "a", loss="features", source_layer="layer1", gate="linear"),
        Edge("old", "b", loss="features", source_layer="layer2"),
        Edge("a", "b", loss="features", target_layer="fc1"),
    )
    terms = method.losses(net, batch, Progress(0, 0.5, 0.5))
    assert set(terms) == {"labels_to_a", "labels_to_b", "old_to_a_features", "old_to_b_features", "a_to_b_features"}
    own = with_features(net["node_0"], ["layer1"], batch.images)[1]["layer1"].clamp(min=0)
    theirs = with_features(old.net, ["layer1"], batch.images)[1]["layer1"].clamp(min=0)
    q = net["regressor_0"].weight[:, :, 0, 0]
    guided = torch.einsum("oc,bchw->bohw", q, own).clamp(min=0)
    torch.testing.assert_close(terms["old_to_a_features"], 0.5 * 0.5 * (theirs - guided).square().mean())
    terms["a_to_b_features"].backward()
    assert net["regressor_2"].weight.grad.abs().sum() > 0
    assert net["node_1"].fc1.weight.grad.abs().sum() > 0
    assert net["node_0"].layer1[0].weight.grad is None, "the source's features are constants"
    assert not [name for name, _ in method.export(net).named_parameters() if "regressor" in name]
    assert set(method.others(net, final=True)) == {"b"}


def test_an_ensemble_ships_no_regressor(task, taught) -> None:
    method, net = collaborative(
        task, [taught("conv-5")], ALL, A, B, OLD, LEARNS, Edge("labels", "b"), Edge("old", "a", loss="features")
    )
    assert len(method.export(net).members) == 2


@pytest.mark.parametrize(
    ("edge", "words"),
    [
        (Edge("labels", "a", loss="features"), "The edge labels -> a has no features: its source is not a net"),
        (Edge("old", "a", loss="attention", source_layer="layer9"), "Unknown layer of node 'old' 'layer9'"),
        (Edge("old", "b", loss="attention"), "Node 'b' has no attention maps: the output of fc1 is a vector"),
        (Edge("labels", "a", loss="attention"), "The edge labels -> a has no attention maps"),
    ],
)
def test_an_edge_to_a_layer_that_is_not_there_is_refused(task, taught, edge: Edge, words: str) -> None:
    nodes = (Node("a", net="conv-4"), B, OLD, LEARNS, Edge("labels", "b"))
    with pytest.raises(UserError, match=words):
        Collaborative(SupervisedConfig(methods={"collaborative": asdict(graph(*nodes, edge))})).build(
            task(), [taught("conv-5")]
        )


def test_an_ensemble_is_the_mean_of_the_nodes_that_train_and_ships_them_all(task, taught, batch, says) -> None:
    old = taught("mlp-5")
    parts = (ALL, A, B, OLD, LEARNS, Edge("labels", "b"), Edge("old", "a"), Edge("all", "a"))
    method, net = collaborative(task, [old], *parts)
    a, b = net["node_1"], net["node_2"]
    mean = (a(batch.images) + b(batch.images)) / 2
    terms = method.losses(net, batch, Progress(0, 0.0, 0.0))
    kl = torch.nn.functional.kl_div(a(batch.images).log_softmax(1), mean.softmax(1), reduction="batchmean")
    torch.testing.assert_close(terms["all_to_a"], kl)
    terms["all_to_a"].backward()
    assert b.fc1.weight.grad is None and a.fc1.weight.grad is not None
    shipped, drawn = method.export(net), torch.get_rng_state()
    torch.testing.assert_close(shipped(batch.images), mean)
    again = build_net(shipped.arch, 3)
    again.load_state_dict(shipped.state_dict())
    torch.testing.assert_close(again(batch.images), mean)
    torch.set_rng_state(drawn)
    method.export(net)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert list(method.others(net, final=True)) == ["a", "b"]
    assert method.shipped_net(task()) == "ensemble"


def test_a_graph_goes_to_a_file_and_from_there_to_other_teachers(tmp_path: Path, task, taught) -> None:
    first = Node("old", net="mlp-5", teacher=1)
    whole = graph(A, B, first, LEARNS, Edge("labels", "b"), Edge("old", "a", "linear", "apart"))
    path = tmp_path / "graph.yaml"
    write_graph(path, whole, ["Found on pets."])
    assert path.read_text().startswith("# Found on pets.\n")
    assert read_graph(path) == whole
    config = Collaborative.with_files(SupervisedConfig(methods={"collaborative": {"graph": str(path)}}))
    assert config.methods == {"collaborative": asdict(whole)}
    method = Collaborative(config)
    method.build(task(), [taught("mlp-5", "cars")])
    assert method.frozen["old"].name == "cars"
    with pytest.raises(UserError, match="is a trained mlp-5, and the teacher x is a mlp-7"):
        method.build(task(), [taught("mlp-7", "cars")])


def test_a_graphs_file_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "graph.yaml"
    with pytest.raises(UserError, match="Could not read"):
        read_graph(path)
    path.write_text("edges: []\n")
    with pytest.raises(UserError, match="holds no nodes"):
        read_graph(path)
    path.write_text("nodes: [{name: a, nett: mlp-9}]\n")
    with pytest.raises(UserError, match=r"Did you mean nodes\.0\.net"):
        read_graph(path)


def test_edges_that_are_not_listed_may_be_open_too(task, taught, batch) -> None:
    parts = graph(A, B, OLD, Edge("old", "a", "cutoff"), Edge("labels", "b", "linear"))
    whole = with_other_edges(replace(parts, other_edges="through"))
    check_graph(whole, ["pets"])
    assert {(edge.source, edge.target): edge.gate for edge in whole.edges} == {
        ("old", "a"): "cutoff",
        ("labels", "b"): "linear",
        **dict.fromkeys([("labels", "a"), ("b", "a"), ("a", "b"), ("old", "b")], "through"),
    }
    method = Collaborative(SupervisedConfig(methods={"collaborative": asdict(replace(parts, other_edges="through"))}))
    net = method.build(task(), [taught()])
    assert set(method.losses(net, batch, Progress(0, 0.0, 0.5))) == {
        *("labels_to_a", "labels_to_b", "a_to_b", "b_to_a", "old_to_b")
    }


def test_edges_take_no_relu_of_maxout_layers(task, taught) -> None:
    shape = (1, 28, 28)
    old, images = taught("fitnet-mnist", shape=shape), torch.randn(2, 1, 28, 28)
    edges = (
        Edge("old", "a", loss=loss, source_layer="layer1", target_layer="layer2") for loss in ("features", "attention")
    )
    parts = graph(Node("a", net="fitnet-mnist"), OLD, Edge("labels", "a"), *edges)
    method = Collaborative(SupervisedConfig(methods={"collaborative": asdict(parts)}))
    net = method.build(task(shape=shape), [old])
    terms = method.losses(net, Batch(images, torch.tensor([0, 2])), Progress(0, 0.0, 0.0))
    own, theirs = net["node_0"].layer2(net["node_0"].layer1(images)), old.net.layer1(images)
    guided = net["regressor_0"](own, torch.ones(()))
    torch.testing.assert_close(terms["old_to_a_features"], 0.5 * (theirs - guided).square().mean())
    torch.testing.assert_close(terms["old_to_a_attention"], attention_loss(own, theirs).mean())
