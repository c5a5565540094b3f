"""`kfrl supervised search`: transfer graphs, or the lambdas of Knowledge Flow, chosen on validation images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from kfrl.cli.run_flags import RunFlags, read_flags
from kfrl.config import validated
from kfrl.errors import UserError
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.search import SearchConfig

if TYPE_CHECKING:
    from kfrl.sweep.folder import SweepFolder, SweepPlan, TrialState
    from kfrl.sweep.space import Trial
    from kfrl.training.method import OwnSettings

PROG = "kfrl supervised search"
STOPPED = 128
"""Exit codes from this one on mean a signal."""


@dataclass(frozen=True)
class SearchFlags(SearchConfig, RunFlags):
    """Search a transfer graph, or the lambdas of Knowledge Flow, on validation images; test the winner once.

    The trials run on Ray Tune, as those of `kfrl sweep` do. The same command continues a search that was stopped.
    """

    resume: Annotated[Path | None, tyro.conf.Suppress] = None
    storage: Path | None = None
    """The search's folder; on a cluster a folder that all nodes can access. Default: runs/searches/<data>-<space>."""
    address: str | None = None
    """A Ray cluster to join, HOST:PORT or auto. Default: Ray on this machine alone."""
    settings: Annotated[SupervisedConfig, tyro.conf.arg(name="")] = field(default_factory=SupervisedConfig)

    @staticmethod
    def method(name: str) -> type[OwnSettings]:
        """The class of a method."""
        from kfrl.supervised.methods import get_method

        return get_method(name)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = read_flags(SearchFlags, PROG, argv)
    search = validated({one.name: getattr(flags, one.name) for one in fields(SearchConfig)}, SearchConfig)
    config = flags.settings
    from kfrl.cli.sweep import check_machine, check_ray, print_estimate, run_sweep
    from kfrl.supervised.search import best_trial, final_plan, make_plan
    from kfrl.sweep.estimate import in_fresh_process, resolve_all
    from kfrl.sweep.folder import SweepFolder

    storage = (flags.storage or _default_folder(search, config)).expanduser().absolute()
    trials, test = SweepFolder(storage / "trials"), SweepFolder(storage / "test")
    plan = make_plan(search, config, trials.fixed)
    check_machine(plan, flags.address)
    if flags.dry_run:
        in_fresh_process(resolve_all, plan)
        print_estimate(plan)
        return 0
    check_ray(flags.address)
    trials.check(plan)
    trials.prepare(in_fresh_process(resolve_all, plan))
    code = run_sweep(trials, flags.address)
    plan = trials.read()
    states = trials.states(plan)
    winner = best_trial(plan, states)
    if code >= STOPPED or winner is None:
        return code or 1
    _report(storage, search, config, plan, states, winner)
    test.prepare(final_plan(search, config, trials, winner))
    code = run_sweep(test, flags.address)
    if code < STOPPED:
        _conclude(storage, test, config)
    return code


def _default_folder(search: SearchConfig, config: SupervisedConfig) -> Path:
    return Path("runs", "searches", f"{Path(config.data).name}-{search.space}")


def _report(
    storage: Path,
    search: SearchConfig,
    config: SupervisedConfig,
    plan: SweepPlan,
    states: Mapping[str, TrialState],
    winner: Trial,
) -> None:
    """Print and write the result: search.json, and a graph as graph.yaml and graph.png."""
    from kfrl.cli.console import table_console
    from kfrl.runs.atomic import write_text
    from kfrl.supervised.graphs import draw_graph, write_graph
    from kfrl.supervised.search import for_file, graph_of

    counts = Counter(states[trial.name].state for trial in plan.trials if not trial.teacher)
    best = states[winner.name].objective
    found = {
        "winner": winner.name,
        "drawn": winner.drawn,
        "validation_accuracy": best,
        "trials": dict(counts),
        "epochs_spent": round(sum(state.done for state in states.values()), 1),
        "epochs_without_pruning": sum(trial.settings["epochs"] for trial in plan.trials),
    }
    write_text(storage / "search.json", json.dumps(found, indent=1) + "\n")
    console = table_console(markup=False)
    drawn = ", ".join(value if key == "graph" else f"{key} {value}" for key, value in winner.drawn.items())
    console.print(f"Best on validation images, {100 * (best or 0.0):.2f} %: {winner.name}: {drawn}", soft_wrap=True)
    console.print(
        f"{found['epochs_spent']:,} epochs were trained; without early stopping it would have been "
        f"{found['epochs_without_pruning']:,}.",
        soft_wrap=True,
    )
    if search.space == "graph":
        assert config.net is not None
        graph = for_file(graph_of(winner), config.net)
        notes = [
            f"Found by kfrl supervised search on {config.data}: {drawn}",
            f"{100 * (best or 0.0):.2f} % of the validation images, best of {sum(counts.values())} trials.",
        ]
        write_graph(storage / "graph.yaml", graph, notes)
        draw_graph(storage / "graph.png", graph, config.net, f"{config.data}: best of {sum(counts.values())}")


def _conclude(storage: Path, test: SweepFolder, config: SupervisedConfig) -> None:
    from kfrl.cli.console import table_console
    from kfrl.cli.supervised import compare

    console = table_console(markup=False)
    try:
        compare.main([str(test.path)])
    except UserError as error:
        console.print(f"Nothing to compare: {error}", soft_wrap=True)
        return
    graph = storage / "graph.yaml"
    if graph.is_file():
        console.print(f"The graph: {graph}; as a picture: {graph.with_suffix('.png')}", soft_wrap=True)
        console.print(
            f"Use it elsewhere: kfrl supervised train --data NAME --net {config.net} --graph {graph}", soft_wrap=True
        )
