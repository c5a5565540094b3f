"""Small studies of the methods for classifiers on Fashion-MNIST: the tables and figures of the documentation.

    python benchmarks/supervised_methods.py rows                 all methods side by side, learning rates tuned
    python benchmarks/supervised_methods.py anti-distillation    the paper's figures 1 and 2, with phi beside them

Finished runs are read, not repeated: delete a folder below --out to repeat its run.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate

from kfrl.compare.stats import permutation_p
from kfrl.runs.metrics import read_metrics
from kfrl.supervised.classifiers import load_classifier
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.corrupt import corrupted
from kfrl.supervised.graphs import Edge, Node
from kfrl.supervised.launch import Session
from kfrl.supervised.run import Run
from kfrl.training.session import Silent, TrainingError

CORRUPTION = (0, 5, 10, 20, 30, 40, 50)
"""Corrupted pixels, in percent."""


def train(config: SupervisedConfig, corruption: Iterable[int] = ()) -> dict[str, Any]:
    """Train unless it is done; returns the content of `eval.json`, the processor time, and the corrupted scores."""
    folder = config.run_dir
    assert folder is not None
    record = folder / "study.json"
    if record.exists():
        known: dict[str, Any] = json.loads(record.read_text())
        return known
    # What a stopped run left.
    shutil.rmtree(folder, ignore_errors=True)
    session = Session.start(config)
    started = time.process_time()
    trained = session.complete(Silent())
    if trained.stopped_by:
        raise SystemExit(f"{folder}: stopped")
    seconds = time.process_time() - started
    result = trained.evaluation | {"cpu_seconds": seconds, "corruption": _corruption(session.run, corruption)}
    record.write_text(json.dumps(result, indent=1))
    print(f"{folder.name}: {result['test']['accuracy_percent']:.2f} %, {seconds:.0f} s", flush=True)
    return result


@torch.no_grad()
def _corruption(run: Run, percents: Iterable[int]) -> dict[str, dict[str, float]]:
    """Scores of the student; what it says is kept as `said-PERCENT.npy`, probabilities (N, K)."""
    net, labels = load_classifier(run.folder.student).net, run.data.test.labels
    found = {}
    for percent in percents:
        images = run.loader(corrupted(run.data.test, percent / 100), channels_last=False)
        logits = torch.cat([net(batch.images) for batch in images.ordered()])
        np.save(run.folder.path / f"said-{percent}.npy", logits.softmax(1).numpy())
        right = (logits.argmax(1) == labels).double().mean()
        found[str(percent)] = {"accuracy": 100 * float(right), "loss": float(F.cross_entropy(logits, labels))}
    return found


# --- all methods side by side -------------------------------------------------------------------------------

LRS = (0.01, 0.03, 0.1)
"""The learning rates of an arm, unless it has others. Its first seed is trained with each; the best on the validation
images is used."""
BIG, OTHER = "teacher", "teacher-mnist"
"""The teachers: a larger net on the same images, and a net of the student's shape on another data set."""


@dataclass(frozen=True)
class Arm:
    """A row of the table."""

    name: str
    method: str
    teacher: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    net: str = "resnet-8"
    lrs: tuple[float, ...] = LRS


SHALLOW = "32c-p-200l-2k"
"""A convolution, a linear bottleneck and one hidden layer: the net of Ba and Caruana, smaller."""
SHALLOW_LRS = (0.0003, 0.001, 0.003)
"""It has no normalisation: at 0.01 the mimic's loss became infinite."""


def _ensemble(*edges: Edge) -> dict[str, Any]:
    """Settings of a graph of two nets whose mean logits are shipped."""
    nodes = (Node("both", net="ensemble"), Node("one"), Node("two"))
    return {"nodes": nodes, "edges": (Edge("labels", "one"), Edge("labels", "two"), *edges)}


def _graph(*edges: Edge, peers: Sequence[str] = ()) -> dict[str, Any]:
    """Settings of a graph: the labels teach the student and its peers; a teacher is frozen."""
    nodes = (Node("student"), *(Node(peer) for peer in peers), Node("teacher", teacher=1))
    return {"nodes": nodes, "edges": (*(Edge("labels", name) for name in ("student", *peers)), *edges)}


ARMS = (
    Arm("baseline", "baseline"),
    Arm("kd", "kd", BIG),
    Arm("mimic", "mimic", BIG),
    Arm("fitnets", "fitnets", BIG),
    Arm("fsp", "fsp", BIG),
    Arm("attention-transfer", "attention-transfer", BIG),
    Arm("knowledge-flow", "knowledge-flow", BIG),
    Arm("mutual", "mutual"),
    Arm(
        "collaborative, with a peer",
        "collaborative",
        BIG,
        _graph(
            Edge("teacher", "student", "linear"),
            Edge("peer", "student", "correct"),
            Edge("student", "peer"),
            peers=["peer"],
        ),
    ),
    Arm("collaborative, edge of logits", "collaborative", BIG, _graph(Edge("teacher", "student"))),
    Arm(
        "collaborative, edge of attention",
        "collaborative",
        BIG,
        _graph(Edge("teacher", "student", loss="attention")),
    ),
    Arm(
        "collaborative, edge of features",
        "collaborative",
        BIG,
        _graph(Edge("teacher", "student", loss="features")),
    ),
    Arm("collaborative, ensemble of two", "collaborative", settings=_ensemble()),
    Arm(
        "collaborative, ensemble of two, taught by it",
        "collaborative",
        settings=_ensemble(Edge("both", "one"), Edge("both", "two")),
    ),
    Arm(
        "collaborative, ensemble of two, pushed apart",
        "collaborative",
        settings=_ensemble(Edge("one", "two", loss="attention-apart"), Edge("two", "one", loss="attention-apart")),
    ),
    Arm("born-again", "born-again", settings={"generations": 2}),
    Arm("fine-tune", "fine-tune", OTHER),
    Arm("growing", "growing", OTHER),
    Arm("lwf", "lwf", OTHER, {"old_data": "none"}),
    Arm("baseline, shallow net", "baseline", net=SHALLOW, lrs=SHALLOW_LRS),
    Arm("mimic, shallow net", "mimic", BIG, net=SHALLOW, lrs=SHALLOW_LRS),
)
"""anti-distillation is not among them: it grows no ResNet."""


def rows(options: argparse.Namespace) -> None:
    """Every method on ResNet-8, with equal epochs and an equal number of tried learning rates."""
    common = SupervisedConfig(
        data="fashion-mnist",
        data_dir=options.data_dir,
        net="resnet-8",
        train_images=options.images or 5_000,
        validation=0.2,
        epochs=options.epochs,
        batch_size=64,
        augment="none",
    )
    folder = options.out / "rows"
    taught = {
        BIG: replace(common, net="resnet-14", method="baseline"),
        OTHER: replace(common, data="mnist", method="baseline"),
    }
    with ProcessPoolExecutor(options.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        best = {name: _best(_tried(pool, config, folder / name)) for name, config in taught.items()}
        teachers = {"": ""} | {name: str(config.run_dir) for name, config in best.items()}
        tried = {}
        for arm in ARMS:
            methods = {arm.method: dict(arm.settings)} if arm.settings else {}
            config = replace(common, net=arm.net, method=arm.method, teachers=teachers[arm.teacher], methods=methods)
            tried[arm.name] = _tried(pool, config, folder / arm.name.replace(", ", "-").replace(" ", "-"), arm.lrs)
        chosen = {name: _best(runs) for name, runs in tried.items()}
        runs = {name: [pool.submit(train, one) for one in _seeds(chosen[name], options.seeds)] for name in chosen}
        results = {name: [run.result() for run in of_arm] for name, of_arm in runs.items()}
    for name, config in best.items():
        print(f"{name}: lr {config.lr:g}, test error {_error(train(config)['test']):.2f} %")
    kept = [_row(name, chosen[name], seed, one) for name in chosen for seed, one in enumerate(results[name], 1)]
    with (options.out / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, kept[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    print(side_by_side(kept))


def _row(arm: str, config: SupervisedConfig, seed: int, result: Mapping[str, Any]) -> dict[str, str]:
    """A run of the table, as in docs/measured/fashion-mnist.csv."""
    others = {name: f"{_error(other):.2f}" for name, other in result["others"].items()}
    return {
        "arm": arm,
        "lr": f"{config.lr:g}",
        "seed": str(seed),
        "error_percent": f"{_error(result['test']):.2f}",
        "others": json.dumps(others),
        "cpu_seconds": f"{result['cpu_seconds']:.0f}",
        "trained_parameters": str(result["trained_parameters"]),
        "deployed_parameters": str(result["deployed_parameters"]),
    }


def side_by_side(rows: Iterable[Mapping[str, str]]) -> str:
    """The table of `rows` in Markdown, from what `_row` keeps of each run; the baseline is one of the arms."""
    arms: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(row)
    errors = {name: [float(row["error_percent"]) for row in of_arm] for name, of_arm in arms.items()}
    table = [
        [
            name,
            float(of_arm[0]["lr"]),
            np.mean(errors[name]),
            ", ".join(row["error_percent"] for row in of_arm),
            np.mean(errors[name]) - np.mean(errors["baseline"]),
            permutation_p(errors[name], errors["baseline"]),
            np.mean([float(row["cpu_seconds"]) for row in of_arm]),
            _others([json.loads(row["others"]) for row in of_arm]),
        ]
        for name, of_arm in arms.items()
    ]
    header = ["method", "lr", "test error, %", "of each seed", "minus baseline", "p", "CPU s", "others, %"]
    return tabulate(table, header, tablefmt="github", floatfmt=("", "g", ".2f", "", "+.2f", ".2f", ".0f", ""))


def _tried(
    pool: ProcessPoolExecutor, config: SupervisedConfig, folder: Path, lrs: Sequence[float] = LRS
) -> list[tuple[SupervisedConfig, Any]]:
    """Begin a run with each learning rate."""
    configs = [replace(config, lr=lr, run_dir=folder / f"lr{lr:g}-s{config.seed}") for lr in lrs]
    return [(one, pool.submit(train, one)) for one in configs]


def _best(runs: Sequence[tuple[SupervisedConfig, Any]]) -> SupervisedConfig:
    """The run whose shipped student is best on the validation images; of equal ones the lowest rate.

    Waits for all runs. One whose loss became infinite is the worst.
    """

    def accuracy(run: tuple[SupervisedConfig, Any]) -> float:
        config, training = run
        try:
            training.result()
        except TrainingError:
            return -1.0
        assert config.run_dir is not None
        return load_classifier(config.run_dir / "student.safetensors").card.validation_accuracy or 0.0

    return max(runs, key=accuracy)[0]


def _seeds(config: SupervisedConfig, seeds: int) -> list[SupervisedConfig]:
    assert config.run_dir is not None
    folder = config.run_dir.parent
    return [replace(config, seed=seed, run_dir=folder / f"lr{config.lr:g}-s{seed}") for seed in range(1, seeds + 1)]


def _error(result: Mapping[str, float]) -> float:
    return 100 - result["accuracy_percent"]


def _others(errors: Sequence[Mapping[str, str]]) -> str:
    """Mean test errors of the runs' other nets and ensembles."""
    return ", ".join(f"{name} {np.mean([float(of_run[name]) for of_run in errors]):.2f}" for name in errors[0])


# --- anti-distillation --------------------------------------------------------------------------------------

NETS = {
    "fully connected": ("mlp-64", "mlp-256"),
    "convolutional": ("conv-8-8", "conv-16-32"),
    "LSTM": ("lstm-32", "lstm-64"),
}
"""Kind of layers -> the teacher, and the larger student."""


PHI = {
    "extension": "uniform",
    "phi_epochs": 1,
    "old_weight": 0.5,
    "teacher_weight": 0.01,
    "noise_weight": 0.48999,
    "hessian_weight": 0.00001,
}
"""The paper gives no lambda. These add up to 1, as its lambdas do."""


def anti_distillation(options: argparse.Namespace) -> None:
    """Compare new and grown weights for each kind of layer: learning curves, and quality under corruption."""
    common = SupervisedConfig(
        data="fashion-mnist",
        data_dir=options.data_dir,
        train_images=options.images,
        epochs=options.epochs,
        batch_size=128,
        optimizer="adam",
        lr=0.001,
        weight_decay=0.0,
        schedule="constant",
        augment="none",
        keep="last",
    )
    arms: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = {}
    # Seed by seed, so that an interrupted study has every kind of layer.
    for seed in range(1, options.seeds + 1):
        for kind, (small, large) in NETS.items():
            folder = options.out / "anti-distillation" / f"{small}-s{seed}"
            train(replace(common, net=small, method="baseline", seed=seed, run_dir=folder / "teacher"))
            grown = replace(common, net=large, method="anti-distillation", teachers=str(folder / "teacher"), seed=seed)
            for name, config in {
                "fresh weights": replace(common, net=large, method="baseline", seed=seed),
                "zero": grown,
                **{
                    f"U[0, {theta:g}]": replace(
                        grown, methods={"anti-distillation": {"extension": "uniform", "theta": theta}}
                    )
                    for theta in options.thetas
                },
                "phi": replace(grown, methods={"anti-distillation": {**PHI, "old_images": options.images}}),
            }.items():
                path = folder / name.replace(" ", "-")
                result = train(replace(config, run_dir=path), corruption=CORRUPTION)
                arms.setdefault((kind, name), []).append((path, result))
    _figures(options.out, arms)


def _figures(out: Path, arms: Mapping[tuple[str, str], Sequence[tuple[Path, dict[str, Any]]]]) -> None:
    scores: list[list[Any]] = []
    figures = {
        number: plt.subplots(number + 1, len(NETS), figsize=(4 * len(NETS), 3 * (number + 1)), squeeze=False)
        for number in (1, 2)
    }
    for (kind, name), runs in arms.items():
        column = list(NETS).index(kind)
        _draw(figures[1][1][:, column], name, *_learning(runs))
        _draw(figures[2][1][:, column], name, *_corrupted(runs))
        for percent in CORRUPTION:
            found = [result["corruption"][str(percent)] for _, result in runs]
            variance = _variance([path for path, _ in runs], percent)
            scores.append([kind, name, percent, *_summary(found, "accuracy"), *_summary(found, "loss"), variance])
        for _, axes in figures.values():
            axes[0, column].set_title(f"{kind}: {NETS[kind][0]} grown to {NETS[kind][1]}", fontsize=9)
    for number, (figure, axes) in figures.items():
        axes[0, 0].set_ylabel("accuracy (%)")
        axes[1, 0].set_ylabel("cross-entropy")
        if number == 2:
            axes[2, 0].set_ylabel("variance between seeds")
        for axis in axes[-1]:
            axis.set_xlabel("epoch" if number == 1 else "corrupted pixels (%)")
        axes[0, 0].legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(out / f"anti-distillation-figure-{number}.png", dpi=110)
    header = ["layers", "weights", "corrupted (%)", "accuracy", "std", "cross-entropy", "std", "variance"]
    with (out / "anti-distillation.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *scores])
    print(tabulate([row for row in scores if row[2] in (0, 20, 50)], header, tablefmt="github", floatfmt=".4g"))


def _variance(paths: Sequence[Path], percent: int) -> float:
    """Of the predicted probabilities between the seeds, the mean over images and classes; 0 of one seed."""
    said = np.stack([np.load(path / f"said-{percent}.npy") for path in paths])
    return float(said.var(0, ddof=min(1, len(paths) - 1)).mean())


def _learning(runs: Sequence[tuple[Path, Any]]) -> tuple[list[float], np.ndarray, np.ndarray]:
    rows = [read_metrics(path / "metrics.csv") for path, _ in runs]
    epochs = [row["charts/epoch"] for row in rows[0]]
    accuracy, loss = (np.array([[row[key] for row in run] for run in rows]) for key in ("val/accuracy", "val/loss"))
    return epochs, 100 * accuracy, loss


def _corrupted(
    runs: Sequence[tuple[Path, Mapping[str, Any]]],
) -> tuple[list[float], np.ndarray, np.ndarray, np.ndarray]:
    accuracy, loss = (
        np.array([[result["corruption"][str(percent)][key] for percent in CORRUPTION] for _, result in runs])
        for key in ("accuracy", "loss")
    )
    variance = np.array([[_variance([path for path, _ in runs], percent) for percent in CORRUPTION]])
    return list(map(float, CORRUPTION)), accuracy, loss, variance


def _draw(axes: np.ndarray, name: str, x: list[float], *measured: np.ndarray) -> None:
    """A line for each of (runs, points), with the standard deviation over the runs around it."""
    for axis, values in zip(axes, measured, strict=True):
        mean, spread = values.mean(0), values.std(0)
        axis.plot(x, mean, label=name)
        axis.fill_between(x, mean - spread, mean + spread, alpha=0.2)


def _summary(found: Iterable[Mapping[str, float]], key: str) -> tuple[float, float]:
    values = np.array([one[key] for one in found])
    return float(values.mean()), float(values.std())


def main() -> None:
    """Read the arguments and run a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["rows", "anti-distillation"])
    parser.add_argument("--out", type=Path, default=Path("runs/supervised-methods"), help="folder for runs and results")
    parser.add_argument("--data-dir", type=Path, help="folder of Fashion-MNIST")
    parser.add_argument("--images", type=int, help="training images; default: 5,000 for rows, else all")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="rows: runs at the same time")
    parser.add_argument("--thetas", type=float, nargs="*", default=[0.01, 0.1], help="values of theta in U[0, theta]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"rows": rows, "anti-distillation": anti_distillation}[options.study](options)


if __name__ == "__main__":
    main()
