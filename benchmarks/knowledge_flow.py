"""Study of docs/knowledge-flow.md: Knowledge Flow, fine-tuning and scratch with equal agent steps.

    python benchmarks/knowledge_flow.py run --expert breakout-a2c.safetensors --non-expert seaquest
    python benchmarks/knowledge_flow.py draw

`run` trains every arm with every seed, one after the other, and skips the runs that are finished, so that it can be
stopped and started again. `draw` makes the table and the plots of the finished runs.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from agents.teachers.store import load_teachers
from envs.atari import identify
from kfrl.compare.plots import TRAINING, draw_arms, smooth
from kfrl.runs.folder import RUNS
from kfrl.runs.metrics import read_metrics
from kfrl.training.signals import noting_signals

PAPER = (
    *("--fold-at", "None", "--no-choose-channels", "--link-heads", "never"),
    *("--student-weight", "None", "--layer-weights-lr", "None"),
)
NO_HEADS = ("--link-heads", "never", "--imitate", "never")
NO_HIDDEN = "methods:\n  knowledge-flow:\n    links:\n" + "".join(
    f"      - {{{{student: {head}, teacher: {{teacher}}, layer: {head}}}}}\n" for head in ("policy", "value")
)
"""A config that links only the heads; {teacher} is the expert's name."""


@dataclass(frozen=True)
class Arm:
    """An arm of the study, one row of the table."""

    name: str
    title: str
    flags: tuple[str, ...]
    config: str = ""
    """YAML for --config, for settings without a flag."""


def arms(expert: str, non_expert: str, random: str) -> tuple[Arm, ...]:
    """The arms: the method, and the method without each of its parts."""
    heads_alone = NO_HIDDEN.format(teacher=load_teachers([expert], RUNS, identify)[0][0].name if expert else "")
    taught = ("--teachers", expert)
    return (
        Arm("scratch", "scratch A3C", ()),
        Arm("fine-tune", "fine-tuning, non-expert", ("--method", "fine-tune", "--teachers", non_expert)),
        Arm("non-expert", "knowledge flow, non-expert", ("--teachers", non_expert)),
        Arm("expert", "knowledge flow, expert", taught),
        Arm("no-fold", "without the fold", (*taught, "--fold-observations", "0")),
        Arm("no-imitation", "without imitation", (*taught, "--imitate", "never")),
        Arm("no-choice", "without the choice of channels", (*taught, "--no-choose-channels")),
        Arm("no-kickstart", "without kickstarting", (*taught, "--kickstart-coef", "0")),
        Arm("no-heads", "without head links, so nothing to imitate", (*taught, *NO_HEADS)),
        Arm("no-hidden", "without hidden links", taught, heads_alone),
        Arm("distillation", "plain distillation, the same samples", (*taught, "--fold-observations", "0"), heads_alone),
        Arm("linked-first", "linked for a tenth", (*taught, "--fold-at", "0.1")),
        Arm("paper", "the paper's own settings", (*taught, *PAPER)),
        Arm("random", "from a teacher of random weights", ("--teachers", random, "--imitate", "always")),
    )


@dataclass(frozen=True)
class Run:
    """Train every arm with every seed."""

    expert: str
    """An agent that plays the game well, as for --teachers."""
    non_expert: str = "seaquest"
    """An agent of another game with the student's shape, which fine-tuning needs."""
    random: str = ""
    """An agent with random weights, e.g. the student of a run of a few steps; without it this arm is left out."""
    game: str = "Breakout"
    """The game to learn."""
    steps: int = 200_000
    """Agent steps of a run."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds; each arm has one run for each."""
    only: tuple[str, ...] = ()
    """Names of the arms to run; default all."""
    curve_points: int = 5
    """Evaluations of the student alone along a run; each takes the time of some 10,000 steps."""
    out: Path = Path("runs/knowledge-flow")
    """The folder for the runs."""


@dataclass(frozen=True)
class Draw:
    """Make the table and the plots."""

    out: Path = Path("runs/knowledge-flow")
    """The folder of the runs."""
    pictures: Path = Path("docs/images")
    """The folder for the plots."""


@dataclass(frozen=True)
class Overlay:
    """Draw single runs in one plot."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """The runs, each as label=folder."""
    output: Path
    """The file of the plot."""


def run(options: Run) -> None:
    """Train the missing runs."""
    for seed in options.seeds:
        for arm in arms(options.expert, options.non_expert, options.random):
            folder = options.out / arm.name / f"s{seed}"
            unwanted = arm.name not in options.only if options.only else arm.name == "random" and not options.random
            if unwanted or (folder / "eval.json").exists():
                continue
            started = (folder / "config.yaml").exists()
            flags = ["--resume", str(folder)] if started else _flags(options, arm, seed, folder)
            _train(flags)


def _train(flags: Sequence[str]) -> None:
    child = subprocess.Popen([sys.executable, "-m", "kfrl.cli.main", "train", *flags])
    # Ctrl-C reaches the run too, which then ends with a checkpoint by itself.
    with noting_signals(lambda number: child.send_signal(number) if number == signal.SIGTERM else None):
        code = child.wait()
    if code:
        sys.exit(code)


def _flags(options: Run, arm: Arm, seed: int, folder: Path) -> list[str]:
    config = options.out / f"{arm.name}.yaml"
    if arm.config:
        options.out.mkdir(parents=True, exist_ok=True)
        config.write_text(arm.config, encoding="utf-8")
    return [
        *(("--config", str(config)) if arm.config else ()),
        *("--game", options.game, "--steps", str(options.steps), "--preset", "fast", "--seed", str(seed)),
        *("--curve-points", str(options.curve_points)),
        *("--run-dir", str(folder), *arm.flags),
    ]


def draw(options: Draw) -> None:
    """Read all finished runs and draw."""
    found = {
        arm: [path.parent for path in sorted((options.out / arm.name).glob("*/eval.json"))] for arm in arms("", "", "")
    }
    found = {arm: folders for arm, folders in found.items() if folders}
    _table(found)
    _curves({arm.title: folders for arm, folders in found.items()}, options.pictures / "knowledge-flow-curves.png")


def overlay(options: Overlay) -> None:
    """Draw single runs in one plot."""
    named = (run.partition("=") for run in options.runs)
    _curves({label: [Path(folder)] for label, _, folder in named}, options.output)


def _table(found: dict[Arm, list[Path]]) -> None:
    table = Table("arm", "seeds", "training, best tenth", "last tenth", "student alone, 30 games", "per seed")
    for arm, folders in found.items():
        alone = [_evaluation(folder)["mean"] for folder in folders]
        tenths = [_tenths(folder) for folder in folders]
        table.add_row(
            arm.title,
            str(len(folders)),
            _mean_and_spread([max(parts) for parts in tenths]),
            _mean_and_spread([parts[-1] for parts in tenths]),
            _mean_and_spread(alone),
            " ".join(f"{score:.1f}" for score in alone),
        )
    Console(width=140).print(table)


def _evaluation(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "eval.json").read_text())
    return result


def _tenths(folder: Path) -> list[float]:
    """Mean raw return of the training games that ended in each tenth of a run."""
    rows = read_metrics(folder / "metrics.csv")
    last = max(row["global_step"] for row in rows)
    return [float(mean) for mean in smooth(rows, TRAINING, np.linspace(0, last + 1, 11), "charts/episodes")[1:]]


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" +- {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _curves(found: dict[str, list[Path]], target: Path) -> None:
    runs = {title: [read_metrics(folder / "metrics.csv") for folder in folders] for title, folders in found.items()}
    draw_arms(runs, target)


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Draw, tyro.conf.subcommand("draw")]
    | Annotated[Overlay, tyro.conf.subcommand("overlay")]
)

if __name__ == "__main__":
    command = tyro.cli(Command, description=__doc__)
    if isinstance(command, Run):
        run(command)
    elif isinstance(command, Draw):
        draw(command)
    else:
        overlay(command)
