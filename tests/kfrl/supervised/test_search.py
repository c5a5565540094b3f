import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from kfrl.cli.main import main
from kfrl.errors import UserError
from kfrl.nets.images.registry import make_net
from kfrl.runs.provenance import sha256
from kfrl.supervised import train
from kfrl.supervised.classifiers import Card, load_classifier, save_classifier
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.graphs import ENSEMBLE, LABELS, read_graph
from kfrl.supervised.methods.collaborative import check_graph
from kfrl.supervised.search import SearchConfig, best_trial, final_plan, graph_of, make_plan
from kfrl.sweep.estimate import resolve_all
from kfrl.sweep.folder import FINISHED, PRUNED, SweepFolder, SweepPlan, TrialState, levels
from kfrl.sweep.space import Trial, teacher_names

DIGITS = SupervisedConfig(data="digits", net="mlp-6", epochs=2, validation=0.2)


def graphs(**search: Any) -> list[Trial]:
    return [trial for trial in make_plan(SearchConfig(**search), DIGITS).trials if not trial.teacher]


@pytest.mark.parametrize(
    ("gates", "frozen", "count"),
    [
        # Into each of two nodes lead two edges: 3 of 4 sets of gates teach it. The peer may be frozen instead.
        ("through,cutoff", True, 3 * (3 + 1)),
        ("through,cutoff", False, 3 * 3),
        ("through", True, 2),
    ],
)
def test_a_space_holds_each_graph_once_and_none_that_is_none(gates: str, frozen: bool, count: int) -> None:
    found = graphs(gates=gates, frozen=frozen, trials=50, num_nodes=2)
    assert len(found) == len({repr(trial.settings) for trial in found}) == count


def test_graphs_are_what_can_be_trained() -> None:
    found = graphs(nets="mlp-6,mlp-9", num_nodes=4, trials=40, edge_losses="kl,apart")
    kinds = set()
    for trial in found:
        graph, count = graph_of(trial), len(teacher_names(trial.settings))
        check_graph(graph, ["a teacher"] * count)
        frozen = [node for node in graph.nodes if node.teacher is not None]
        assert [node.teacher for node in frozen] == list(range(1, count + 1))
        assert [node.net for node in frozen] == teacher_names(trial.settings)
        assert (len(graph.nodes), graph.nodes[0].name, graph.nodes[0].teacher) == (4, "student", None)
        kinds |= {edge.gate for edge in graph.edges} | {edge.loss for edge in graph.edges}
        kinds |= {node.net for node in graph.nodes}
        assert all(edge.gate != "correct" for edge in graph.edges if edge.source == LABELS)
    assert kinds == {"through", "linear", "negative-linear", "correct", "kl", "apart", "mlp-6", "mlp-9"}


def test_settings_of_the_edges_reach_the_graphs() -> None:
    given = {"collaborative": {"edge_temperature": 2.0, "kl_direction": "reverse"}}
    plan = make_plan(SearchConfig(trials=2), replace(DIGITS, methods=given))
    drawn = [graph_of(trial) for trial in plan.trials if not trial.teacher]
    assert [(one.edge_temperature, one.kl_direction) for one in drawn] == [(2.0, "reverse")] * 2


def test_an_ensemble_as_the_target_teaches_none() -> None:
    for trial in graphs(ensemble=True, num_nodes=3, trials=20):
        graph = graph_of(trial)
        assert graph.nodes[0].net == ENSEMBLE
        assert sum(node.teacher is None for node in graph.nodes) >= 3
        assert all(ENSEMBLE not in (edge.source, edge.target) for edge in graph.edges)


def test_more_trials_leave_the_first_as_they_are_and_pre_trained_nets_come_first() -> None:
    few, more = (make_plan(SearchConfig(trials=count, nets="mlp-9"), DIGITS) for count in (3, 6))
    assert more.trials[: len(few.trials)] == few.trials
    assert [[trial.name for trial in level] for level in levels(few)] == [
        ["pretrained-mlp-6", "pretrained-mlp-9"],
        ["graph-001", "graph-002", "graph-003"],
    ]
    assert few.early_stopping is not None
    assert make_plan(SearchConfig(trials=3, prune=False), DIGITS).early_stopping is None


def test_the_lambdas_of_flow_are_crossed_or_drawn_and_never_pruned() -> None:
    config = SupervisedConfig(data="digits", teachers="digits", validation=0.2)
    plan = make_plan(SearchConfig(space="flow"), config)
    assert plan.early_stopping is None
    drawn = [(t.drawn["dependence_coef"], t.drawn["kl_coef"]) for t in plan.trials]
    assert drawn == [(one, two) for one in (0.05, 0.1, 0.5) for two in (0.001, 0.01, 0.05)]
    assert plan.trials[0].settings["methods"] == {"knowledge-flow": {"dependence_coef": 0.05, "kl_coef": 0.001}}
    assert len(make_plan(SearchConfig(space="flow", trials=4), config).trials) == 4


@pytest.mark.parametrize(
    ("search", "settings", "words"),
    [
        ({}, {"data": ""}, "Which images"),
        ({}, {"validation": 0.0}, "--validation 0 keeps none"),
        ({}, {"net": None}, "Which net is the student"),
        ({"gates": "through,cutof"}, {}, "Unknown gate 'cutof'. Did you mean 'cutoff'"),
        ({"gates": "cutoff"}, {}, "has a student that learns. Give more gates"),
        ({"edge_losses": ""}, {}, "Give at least one loss of edges: kl"),
        ({"space": "flow"}, {}, "from at least one teacher"),
    ],
)
def test_a_search_that_cannot_be_is_refused(search: Any, settings: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_plan(SearchConfig(**search), replace(DIGITS, **settings))


def classifier(path: Path, validation_accuracy: float) -> str:
    """A run with this student, in the user's runs; returns its checksum."""
    net = make_net("mlp-6", (1, 8, 8), 10)
    card = Card("digits", tuple("0123456789"), net.arch, (1, 8, 8), (0.0,), (1.0,), net="mlp-6")
    path.parent.mkdir(parents=True)
    save_classifier(path, net, replace(card, validation_accuracy=validation_accuracy))
    return sha256(path)


@pytest.mark.parametrize("space", ["graph", "flow"])
def test_a_search_keeps_the_teachers_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Literal["graph", "flow"]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = tmp_path / "runs" / "digits" / "baseline" / "one" / "student.safetensors"
    checksum = classifier(first, 0.5)
    search, config = SearchConfig(space=space, trials=4, num_nodes=2), replace(DIGITS, teachers="digits")
    folder, found = SweepFolder(tmp_path / "sweep"), []
    for better in (0.8, 0.9):
        plan = make_plan(search, config, folder.fixed)
        folder.check(plan)
        folder.prepare(resolve_all(plan))
        plan = folder.read()
        found.append([folder.settings(trial, plan) for trial in plan.trials])
        classifier(tmp_path / "runs" / "digits" / "baseline" / f"{better}" / "student.safetensors", better)
    assert found[0] == found[1]
    taught = {(one["teachers"], *one["teacher_sha256"]) for one in found[0] if one.get("teachers")}
    assert taught == {(str(first), checksum)}


@pytest.mark.parametrize("space", ["graph", "flow"])
def test_a_search_refuses_teachers_of_another_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Literal["graph", "flow"]
) -> None:
    monkeypatch.chdir(tmp_path)
    classifier(tmp_path / "runs" / "digits" / "baseline" / "one" / "student.safetensors", 0.5)
    config = replace(DIGITS, teachers="digits", teacher_sha256=("abc",))
    with pytest.raises(UserError, match="the config says abc"):
        resolve_all(make_plan(SearchConfig(space=space, trials=4, num_nodes=2), config))


def test_what_was_pruned_never_wins() -> None:
    plan = make_plan(SearchConfig(trials=3), DIGITS)
    states = {trial.name: TrialState(FINISHED, objective=0.99) for trial in plan.trials}
    states |= {"graph-001": TrialState(PRUNED, objective=0.9), "graph-002": TrialState(FINISHED, objective=0.7)}
    states |= {"graph-003": TrialState(FINISHED, objective=0.8)}
    winner = best_trial(plan, states)
    assert winner is not None and winner.name == "graph-003"
    assert best_trial(plan, dict.fromkeys(states, TrialState(PRUNED))) is None


def test_the_winner_is_tested_beside_its_rivals_with_new_seeds_and_all_images(tmp_path: Path) -> None:
    search = SearchConfig(trials=3, nets="mlp-6,mlp-9", retrainings=2)
    plan = make_plan(search, DIGITS)
    folder = SweepFolder(tmp_path / "trials")
    folder.prepare(plan)
    taught = next(trial for trial in plan.trials if trial.settings.get("teachers"))
    final = final_plan(search, DIGITS, folder, taught)
    arms = list(dict.fromkeys(trial.group for trial in final.trials))
    assert arms == ["winner", "alone", "kd-mlp-6", "kd-mlp-9", "mutual-mlp-6", "mutual-mlp-9"]
    assert {trial.settings["seed"] for trial in final.trials} == {2, 3}
    assert {(trial.settings["validation"], trial.settings["keep"]) for trial in final.trials} == {(0.0, "last")}
    paths = [str(tmp_path / "trials" / f"pretrained-{name}") for name in teacher_names(taught.settings)]
    assert final.trials[0].settings["teachers"] == ",".join(paths)
    assert all(not trial.teacher and not trial.level for trial in final.trials)


def test_a_search_leaves_its_graph_and_what_it_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but Ray: the trials are trained here, one after the other."""

    def run_here(folder: SweepFolder, address: str | None) -> int:
        plan: SweepPlan = folder.read()
        for trial in plan.trials:
            train(folder.settings(trial, plan))
        folder.write_states(plan, folder.states(plan))
        return 0

    monkeypatch.setattr("kfrl.cli.sweep.run_sweep", run_here)
    monkeypatch.setattr("kfrl.cli.sweep.check_ray", lambda address: None)
    monkeypatch.setattr("kfrl.sweep.estimate.in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.chdir(tmp_path)
    flags = "--data digits --net mlp-6 --num-nodes 2 --trials 2 --epochs 1 --retrainings 1 --batch-size 64"
    assert main(["supervised", "search", *flags.split()]) == 0
    folder = tmp_path / "runs" / "searches" / "digits-graph"
    found = json.loads((folder / "search.json").read_text())
    assert found["trials"] == {"finished": 2} and found["epochs_without_pruning"] == 3
    graph = read_graph(folder / "graph.yaml")
    assert graph.nodes[0].net is None, "another data set may have another student"
    assert (folder / "graph.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "winner" in said and "mutual-mlp-6" in said and "Use it elsewhere" in said
    tested = load_classifier(folder / "test" / "winner-s2" / "student.safetensors").card
    assert (tested.seed, tested.validation_accuracy, tested.method) == (2, None, "collaborative")
