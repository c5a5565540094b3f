"""Search for a transfer graph, or for the lambdas of Knowledge Flow, on validation images. Imports no torch.

The trials run as a sweep. The best trial on the validation images is trained again, with other seeds and also on the
validation images, and tested once, beside the methods that it is compared with (Minami et al. 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from kfrl.config import Count, Direction, NonNegative, split_names, validated
from kfrl.errors import UserError, unknown
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.graphs import ENSEMBLE, LABELS, LOSSES, Edge, EdgeLoss, Graph, Node, plain_graph
from kfrl.sweep.folder import FINISHED, SweepFolder, SweepPlan, TrialState
from kfrl.sweep.space import TEACHER, EarlyStopping, FixedTeacher, Trial, with_fixed_teachers

DOMAIN = "kfrl.supervised.trials"
GATES = ("through", "cutoff", "linear", "negative-linear", "correct")
STUDENT = "student"
_TRIES = 2000
"""Draws in a row without a new graph, after which the space counts as exhausted."""

S = TypeVar("S", bound=str)

FixedTeachers = Mapping[str, tuple[FixedTeacher, ...]]


@dataclass(frozen=True)
class SearchConfig:
    """The settings of a search."""

    space: Literal["graph", "flow"] = "graph"
    """graph: a transfer graph of --method collaborative; flow: Knowledge Flow's lambda_1 and lambda_2."""
    trials: Count = 100
    """graph: number of random graphs; flow: number of pairs of lambdas, at most all."""
    num_nodes: Annotated[int, Ge(2), Le(7)] = 3
    """Nets of a graph, the student included."""
    nets: str = ""
    """Nets that the other nodes may have, comma-separated. Default: the student's net."""
    gates: str = ",".join(GATES)
    """Gates that edges may have, comma-separated."""
    edge_losses: str = "kl"
    """Losses that edges between nets may have, comma-separated: kl, apart, attention, attention-apart, features."""
    ensemble: bool = False
    """The target is the ensemble of the nodes that train; it teaches none, and --num-nodes does not count it."""
    frozen: bool = True
    """With probability 1/2, each node but the student is pre-trained and frozen: one of --teachers, or else a net of
    its kind that the search trains first."""
    dependence_coefs: tuple[NonNegative, ...] = (0.05, 0.1, 0.5)
    """flow: values of lambda_1; these are the paper's."""
    kl_coefs: tuple[NonNegative, ...] = (0.001, 0.01, 0.05)
    """flow: values of lambda_2; these are the paper's."""
    grace: Annotated[float, Gt(0.0), Lt(1.0)] = 0.5
    """ASHA's first rung, as a share of a run."""
    factor: Annotated[float, Gt(1.0)] = 2.0
    """ASHA continues the best 1/factor of the trials at each rung."""
    prune: bool = True
    """graph: ASHA stops trials early. Trials of flow always run to the end, as lambda's effect shows after the
    hand-over."""
    retrainings: Count = 3
    """Number of seeds for training the winner and the methods it is compared with; none of them is the search's."""


def make_plan(search: SearchConfig, config: SupervisedConfig, fixed: FixedTeachers | None = None) -> SweepPlan:
    """All trials of a search; a larger number of trials keeps the first ones.

    Args:
        search: The settings of the search.
        config: The settings of every trial; its seed is also the seed of the draws.
        fixed: The teachers of the search that is continued, by name.

    Raises:
        UserError: no validation images, no student, an unknown gate or loss, a teacher that does not exist or has
            another checksum, or a space without a graph.
    """
    if not config.data:
        raise UserError("Which images? Give --data NAME, e.g. --data mnist; `kfrl supervised data` lists them.")
    if not config.validation:
        raise UserError("A search chooses on validation images, and --validation 0 keeps none: give a share, e.g. 0.1.")
    if search.space == "flow":
        return SweepPlan(DOMAIN, tuple(_flows(search, config)), fixed=dict(fixed or {}))
    if config.net is None:
        raise UserError("Which net is the student? Give --net NAME, e.g. --net resnet-32.")
    early = EarlyStopping(search.grace, search.factor) if search.prune else None
    known = _find_teachers(config, fixed or {}) if search.frozen else {}
    return SweepPlan(DOMAIN, tuple(_graphs(search, config, known)), early_stopping=early, fixed=known)


def _find_teachers(config: SupervisedConfig, fixed: FixedTeachers) -> dict[str, tuple[FixedTeacher, ...]]:
    """`fixed`, with the teachers of --teachers that it lacks."""
    from kfrl.runs.provenance import check_pinned
    from kfrl.supervised.trials import DOMAIN as IMAGES

    found = {**{name: tuple(IMAGES.find_teachers(name)) for name in config.teacher_names if name not in fixed}, **fixed}
    asked = [one for name in config.teacher_names for one in found[name]]
    check_pinned([Path(one.reference) for one in asked], [one.sha256 for one in asked], config.teacher_sha256)
    return found


def changed(config: SupervisedConfig) -> dict[str, Any]:
    """The settings that differ from the defaults, as plain values; folders as absolute paths."""
    default = asdict(SupervisedConfig())
    found = {name: value for name, value in asdict(config).items() if value != default[name] and name != "run_dir"}
    if config.data_dir is not None:
        found["data_dir"] = str(config.data_dir.expanduser().absolute())
    if "/" in config.data:
        found["data"] = str(Path(config.data).expanduser().absolute())
    return found


def _untaught(config: SupervisedConfig) -> dict[str, Any]:
    """`changed`, without the teachers."""
    return {key: value for key, value in changed(config).items() if key not in ("teachers", "teacher_sha256")}


def _method(base: Mapping[str, Any], name: str, **own: Any) -> dict[str, Any]:
    """The settings of a run of method `name`, with its settings `own`, and without those of other methods."""
    given = base.get("methods", {}).get(name, {})
    mine = own if name == "collaborative" else {**given, **own}
    found = {**{key: value for key, value in base.items() if key != "methods"}, "method": name}
    found.setdefault("epochs", SupervisedConfig.epochs)
    return {**found, "methods": {name: mine}} if mine else found


# --- the lambdas of Knowledge Flow ------------------------------------------------------------------------------


def _flows(search: SearchConfig, config: SupervisedConfig) -> Iterator[Trial]:
    if not config.teacher_names or config.method not in (None, "knowledge-flow"):
        raise UserError("--space flow is for --method knowledge-flow, from at least one teacher: give --teachers NAME.")
    pairs = sorted(itertools.product(dict.fromkeys(search.dependence_coefs), dict.fromkeys(search.kl_coefs)))
    if search.trials < len(pairs):
        order = np.random.default_rng(config.seed).permutation(len(pairs))
        pairs = [pairs[index] for index in order[: search.trials]]
    base = changed(config)
    for first, second in pairs:
        lambdas = {"dependence_coef": first, "kl_coef": second}
        yield Trial(
            name=f"flow-{first:g}-{second:g}",
            settings=_method(base, "knowledge-flow", **lambdas),
            group="flow",
            drawn=lambdas,
        )


# --- graphs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GraphSpace:
    """The search space: graphs with one target, by the choices of nets, gates and losses."""

    student: str
    """The target's net."""
    nets: tuple[str, ...]
    """Nets of the other nodes."""
    num_nodes: int
    gates: tuple[str, ...]
    losses: tuple[EdgeLoss, ...]
    ensemble: bool
    frozen: Mapping[str, tuple[str, ...]]
    """Net -> names of the teachers that a frozen node with this net can be."""
    temperature: float = 1.0
    kl_direction: Direction = "forward"

    def draw(self, random: np.random.Generator) -> tuple[Graph, tuple[str, ...]] | None:
        """Draw a graph and the teachers of its frozen nodes, in order; None if the graph is not valid.

        A graph is not valid if a node that trains has no open edge into it, or an ensemble has fewer than two nets. In
        the paper a node is frozen if all gates into it are drawn as cutoff; here with probability 1/2, if it can be.
        """

        def one(choices: Sequence[S]) -> S:
            return choices[int(random.integers(len(choices)))]

        names = [STUDENT if not self.ensemble else "node-1", *(f"node-{k + 2}" for k in range(self.num_nodes - 1))]
        nets = [self.student, *(one(self.nets) for _ in names[1:])]
        nodes = [Node(ENSEMBLE, net=ENSEMBLE)] if self.ensemble else []
        edges: list[Edge] = []
        teachers: list[str] = []
        for name, net in zip(names, nets, strict=True):
            into = [Edge(LABELS, name, _of_labels(one(self.gates)))]
            others = [other for other in names if other != name]
            into += [Edge(other, name, one(self.gates), one(self.losses)) for other in others]
            if self.frozen.get(net) and name != STUDENT and random.random() < 0.5:
                teachers.append(one(self.frozen[net]))
                nodes.append(Node(name, net, len(teachers)))
                continue
            taught = [edge for edge in into if edge.gate != "cutoff"]
            if not taught:
                return None
            nodes.append(Node(name, net))
            edges += taught
        if self.ensemble and sum(node.teacher is None for node in nodes) - 1 < 2:
            return None
        graph = Graph(tuple(nodes), tuple(edges), edge_temperature=self.temperature, kl_direction=self.kl_direction)
        return graph, tuple(teachers)


def _of_labels(gate: str) -> str:
    """The gate of an edge from labels, which are always right: `through` instead of `correct`."""
    return "through" if gate == "correct" else gate


def _graphs(search: SearchConfig, config: SupervisedConfig, fixed: FixedTeachers) -> Iterator[Trial]:
    assert config.net is not None
    nets = split_names(search.nets) or (config.net,)
    given = config.methods.get("collaborative", {})
    space = GraphSpace(
        student=config.net,
        nets=nets,
        num_nodes=search.num_nodes,
        gates=_known("gate", split_names(search.gates), GATES),
        losses=_known("loss of edges", split_names(search.edge_losses), LOSSES),
        ensemble=search.ensemble,
        frozen=_frozen(search, config, nets, fixed),
        temperature=float(given.get("edge_temperature", Graph.edge_temperature)),
        kl_direction=given.get("kl_direction", Graph.kl_direction),
    )
    base = {key: value for key, value in _untaught(config).items() if key != "net"}
    own = search.frozen and not config.teacher_names
    for net in dict.fromkeys((config.net, *nets)) if own else ():
        yield Trial(f"pretrained-{net}", {**_method(base, "baseline"), "net": net}, "pretrained", {}, teacher=net)
    drawn = list(_distinct(space, search.trials, config.seed))
    if not drawn:
        raise UserError(
            f"No graph of {search.num_nodes} nodes with the gates {search.gates} has a student that learns. Give more "
            "gates."
        )
    for number, (graph, teachers) in enumerate(drawn, start=1):
        named = ",".join(f"{TEACHER}{name}" if own else name for name in teachers)
        yield Trial(
            name=f"graph-{number:03d}",
            settings={
                **{**_method(base, "collaborative", **plain_graph(graph)), "net": config.net},
                **({"teachers": named} if named else {}),
            },
            group="graph",
            drawn={"graph": describe(graph)},
            level=int(own),
        )


def _known(kind: str, given: Sequence[str], names: Sequence[S]) -> tuple[S, ...]:
    by_name: dict[str, S] = {name: name for name in names}
    for name in given:
        if name not in by_name:
            raise unknown(kind, name, names)
    if not given:
        raise UserError(f"Give at least one {kind}: {', '.join(names)}.")
    return tuple(by_name[name] for name in given)


def _frozen(
    search: SearchConfig, config: SupervisedConfig, nets: Sequence[str], fixed: FixedTeachers
) -> dict[str, tuple[str, ...]]:
    """Net -> names of the teachers that a frozen node with this net can be."""
    if not search.frozen:
        return {}
    if not config.teacher_names:
        return {net: (net,) for net in (*nets, str(config.net))}
    from kfrl.supervised.classifiers import read_card

    found: dict[str, tuple[str, ...]] = {}
    for one in itertools.chain.from_iterable(fixed[name] for name in config.teacher_names):
        net = read_card(Path(one.reference)).net
        found[net] = (*found.get(net, ()), one.reference)
    return found


def _distinct(space: GraphSpace, count: int, seed: int) -> Iterator[tuple[Graph, tuple[str, ...]]]:
    """Distinct graphs, until there are `count` or no new one is found."""
    random, seen, tries = np.random.default_rng(seed), set[object](), 0
    while len(seen) < count and tries < _TRIES:
        found, tries = space.draw(random), tries + 1
        if found is not None and found not in seen:
            seen.add(found)
            tries = 0
            yield found


def describe(graph: Graph) -> str:
    """A graph in one line: each node's net, and the sources that it learns from."""

    def source(edge: Edge) -> str:
        loss = "" if edge.loss == "kl" else f" {edge.loss}"
        return f"{edge.source} {edge.gate}{loss}"

    parts = []
    for node in graph.nodes:
        into = [source(edge) for edge in graph.edges if edge.target == node.name and edge.gate != "cutoff"]
        words = (
            "all nodes that train"
            if node.net == ENSEMBLE
            else "frozen"
            if node.teacher is not None
            else ", ".join(into)
        )
        parts.append(f"{node.name} ({node.net}): {words}")
    return "; ".join(parts)


# --- the winner ---------------------------------------------------------------------------------------------------


def best_trial(plan: SweepPlan, states: Mapping[str, TrialState]) -> Trial | None:
    """The finished trial that is best on the validation images; among equals the first."""
    done = [
        trial
        for trial in plan.trials
        if not trial.teacher and states[trial.name].state == FINISHED and states[trial.name].objective is not None
    ]
    return max(done, key=lambda trial: states[trial.name].objective or 0.0, default=None)


def final_plan(search: SearchConfig, config: SupervisedConfig, folder: SweepFolder, winner: Trial) -> SweepPlan:
    """The winner and its rivals, trained on as many images as training and validation had together.

    Rivals of a graph: the student alone, knowledge distillation from each pre-trained net, and mutual learning with a
    peer of each kind. Rivals of a flow: the student alone, and the flow with the lambdas of the settings.
    """
    plan = folder.read()
    whole = {key: value for key, value in folder.settings(winner, plan).items() if key != "run_dir"}
    rivals = _rivals(search, config, folder, plan)
    arms = {"winner": whole, **{name: with_fixed_teachers(own, plan.fixed) for name, own in rivals.items()}}
    trials = []
    for name, settings in arms.items():
        if name != "winner" and settings == whole:
            continue
        for seed in range(config.seed + 1, config.seed + 1 + search.retrainings):
            final = {**settings, "validation": 0.0, "keep": "last", "seed": seed}
            trials.append(Trial(f"{name}-s{seed}", final, name, {}))
    return SweepPlan(DOMAIN, tuple(trials))


def _rivals(
    search: SearchConfig, config: SupervisedConfig, folder: SweepFolder, plan: SweepPlan
) -> dict[str, dict[str, Any]]:
    base = _untaught(config)
    found = {"alone": _method(base, "baseline")}
    if search.space == "flow":
        return found | {"flow-as-given": _method(changed(config), "knowledge-flow")}
    nets = split_names(search.nets) or (str(config.net),)
    frozen = {one.teacher: str(folder.run(one).path) for one in plan.trials if one.teacher}
    if search.frozen and config.teacher_names:
        frozen = {net: paths[0] for net, paths in _frozen(search, config, nets, plan.fixed).items()}
    for net, path in frozen.items():
        found[f"kd-{net}"] = {**_method(base, "kd"), "teachers": path}
    for net in dict.fromkeys(nets):
        found[f"mutual-{net}"] = _method(base, "mutual", peers=net)
    return found


def graph_of(trial: Trial) -> Graph:
    """The graph of a trial."""
    return validated(dict(trial.settings["methods"]["collaborative"]), Graph)


def for_file(graph: Graph, student: str) -> Graph:
    """The graph without the name of the student's net, so that --net chooses it."""
    return replace(
        graph,
        nodes=tuple(
            replace(node, net=None) if node.name == STUDENT and node.net == student else node for node in graph.nodes
        ),
    )
