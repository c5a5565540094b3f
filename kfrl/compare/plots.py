"""Plots of runs, drawn from their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kfrl.errors import UserError
from kfrl.runs import history
from kfrl.runs.atomic import replacing
from kfrl.runs.metrics import STEP, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float]]
TRAINING = "charts/episodic_return"
GUIDED = "charts/guided_return"
GAMES = "charts/episodes"
VALIDATION = "val/accuracy"
EPOCH = "charts/epoch"
STUDENT = "eval/mean_return"
P_STUDENT = "flow/p_student/"
P_TEACHER = "flow/p_teacher/"
LEGEND_COLUMNS = 3
"""Columns of the legend below the curves of several arms."""


@dataclass(frozen=True)
class Time:
    """The unit of a plot's time axis."""

    label: str
    scale: float = 1.0


def series(rows: Rows, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of one metric, sorted by step; rows without the metric are left out."""
    points = sorted((row[STEP], row[name]) for row in rows if name in row)
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)


def smooth(rows: Rows, name: str, grid: NDArray[np.float64], weight: str | None = None) -> NDArray[np.float64]:
    """One metric averaged over the bins that end at each step of `grid`; empty bins are interpolated.

    Args:
        rows: A run's metrics.
        name: The metric.
        grid: Right ends of the bins, ascending.
        weight: A metric to weight the rows by, e.g. the number of games in a row's mean return.

    Returns:
        (len(grid),)
    """
    kept = [row for row in rows if name in row]
    bins = np.searchsorted(grid, [row[STEP] for row in kept])
    weights = np.array([row[weight] if weight else 1.0 for row in kept])
    values = np.array([row[name] for row in kept])
    inside = bins < len(grid)
    total = np.bincount(bins[inside], (weights * values)[inside], len(grid))
    count = np.bincount(bins[inside], weights[inside], len(grid))
    filled = count > 0
    if not filled.any():
        return np.full(len(grid), np.nan)
    return np.interp(grid, grid[filled], total[filled] / count[filled])


def games_curve(rows: Rows, name: str, points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and smoothed mean returns of games, between the first row that has them and the last; empty without any.

    Args:
        rows: A run's metrics.
        name: The metric, e.g. `TRAINING`. A row counts by its number of games, if all such rows have one.
        points: Points of the whole run.
    """
    steps, _ = series(rows, name)
    if not len(steps):
        return steps, steps
    last = max(row[STEP] for row in rows)
    grid = np.linspace(last / points, last, points)
    counted = all(GAMES in row for row in rows if name in row)
    first, end = np.searchsorted(grid, [steps[0], steps[-1]])
    return grid[first : end + 1], smooth(rows, name, grid, GAMES if counted else None)[first : end + 1]


def draw_run(directory: Path, target: Path) -> None:
    """Draw one run: its returns or its accuracy, and p of the student and of each teacher per layer (Figure 1(c)).

    A vertical line with the teacher's name marks each step at which a teacher was linked or removed (history.csv).

    Raises:
        UserError: the folder holds no metrics.
    """
    from matplotlib.figure import Figure  # imported here: reading curves does not need it

    rows = read_metrics(directory / "metrics.csv")
    if not rows:
        raise UserError(f"{directory} has no metrics.csv with at least one row: there is nothing to draw.")
    layers = layer_names(rows, P_STUDENT)
    figure = Figure(figsize=(4.4 + 2.3 * len(layers), 3.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(layers), squeeze=False)
    if any(EPOCH in row for row in rows):
        rows, time = [{**row, STEP: row[EPOCH]} for row in rows if EPOCH in row], Time("epochs")
        _draw_accuracies(axes[0, 0], rows)
    else:
        time = Time("million agent steps", 1e-6)
        _draw_returns(axes[0, 0], rows, with_links=bool(layers))
    for axis, layer in zip(axes[0, 1:], layers, strict=True):
        _draw_weights(axis, rows, layer, time)
        _draw_changes(axis, history.read(directory / "history.csv"), time)
    figure.suptitle("/".join(directory.resolve().parts[-3:]), fontsize=8)
    save_figure(figure, target)


def _draw_accuracies(axis: Any, rows: Rows) -> None:
    """Draw the accuracy of the student alone, and of every other net that was evaluated."""
    names = [
        VALIDATION,
        *sorted(name for name in {n for row in rows for n in row} if name.startswith(f"{VALIDATION}_")),
    ]
    for name in names:
        epochs, values = series(rows, name)
        label = name.removeprefix(f"{VALIDATION}_").replace("_", " ") if name != VALIDATION else "student alone"
        axis.plot(epochs, 100 * values, "o-", markersize=3, label=label)
    axis.set(xlabel="epochs", ylabel="validation accuracy, %")
    axis.legend(fontsize=7)


def _draw_returns(axis: Any, rows: Rows, with_links: bool) -> None:
    training = "training, with links" if with_links else "training"
    for name, label in ((GUIDED, "training, another net acts too"), (TRAINING, training)):
        steps, values = games_curve(rows, name, 40)
        if len(steps):
            axis.plot(steps / 1e6, values, label=label)
    steps, values = series(rows, STUDENT)
    if len(steps):
        axis.plot(steps / 1e6, values, "o-", markersize=3, label="student alone")
    axis.set(xlabel="million agent steps", ylabel="raw return")
    if axis.lines:
        axis.legend(fontsize=7)


@dataclass(frozen=True)
class Curves:
    """A curve of each run of an arm, from the first step at which all of these runs have a value."""

    steps: NDArray[np.float64]
    """(points,)"""
    returns: NDArray[np.float64]
    """(runs, points); a run without a curve has no row."""


@dataclass(frozen=True)
class ArmCurves:
    """Curves of an arm's runs, to the last step that all runs reached."""

    training: Curves
    """Of the training games."""
    alone: Curves
    """Of the student alone."""


def arm_curves(runs: Sequence[Rows], points: int = 25) -> ArmCurves:
    """The curves of an arm, from the metrics of its runs; `points` are those of the whole run."""
    last = min(max(row[STEP] for row in rows) for rows in runs)
    grid = np.linspace(last / points, last, points)
    training, alone = [], []
    for rows in runs:
        steps, values = series(rows, TRAINING)
        if len(steps) and steps[0] <= last:
            training.append((steps[0], smooth(rows, TRAINING, grid, GAMES)))
        steps, values = series(rows, STUDENT)
        if len(steps) > 1 and steps[0] < last:
            alone.append((steps[0], np.interp(grid, steps, values)))
    return ArmCurves(_curves(grid, training), _curves(grid, alone))


def _curves(grid: NDArray[np.float64], runs: Sequence[tuple[float, NDArray[np.float64]]]) -> Curves:
    """The curves of runs on `grid`, given with the step from which each has values."""
    begun = grid >= max((first for first, _ in runs), default=0.0)
    steps = grid[begun]
    return Curves(steps, np.array([returns[begun] for _, returns in runs]).reshape(len(runs), len(steps)))


def draw_arms(arms: Mapping[str, Sequence[Rows]], target: Path, points: int = 25) -> None:
    """Draw the learning curves of arms: mean and range over the runs, in training and of the student alone.

    Args:
        arms: The metrics of each run, by the arm's name in the legend.
        target: The file of the plot.
        points: Points of each curve.
    """
    from matplotlib.figure import Figure

    legend_rows = -(-len(arms) // LEGEND_COLUMNS)
    figure = Figure(figsize=(11, 4 + 0.2 * legend_rows), layout="constrained")
    axes = figure.subplots(1, 2)
    for index, (name, runs) in enumerate(arms.items()):
        curves = arm_curves(runs, points)
        training, alone = curves.training, curves.alone
        # A dollar sign would start a formula.
        missing = _missing(len(runs), training=len(training.returns), alone=len(alone.returns))
        label = name.replace("$", r"\$") + missing
        color = f"C{index}"
        for axis, kind in zip(axes, (training, alone), strict=True):
            if len(kind.returns):
                _draw_spread(axis, kind, color)
        axes[0].plot([], color=color, label=label)
    axes[0].set(title="while training", xlabel="million agent steps", ylabel="raw return")
    axes[1].set(title="student alone", xlabel="million agent steps")
    figure.legend(loc="outside lower center", ncols=min(len(arms), LEGEND_COLUMNS), fontsize=8)
    save_figure(figure, target)


def _missing(runs: int, **curves: int) -> str:
    """A suffix for the arm's name that says how many of its runs have a curve; empty if all have."""
    fewer = [f"{count} of {runs} {name}" for name, count in curves.items() if count < runs]
    return f" ({', '.join(fewer)})" if fewer else ""


def _draw_spread(axis: Any, curves: Curves, color: str) -> None:
    steps, returns = curves.steps / 1e6, curves.returns
    axis.plot(steps, returns.mean(0), color=color)
    axis.fill_between(steps, returns.min(0), returns.max(0), color=color, alpha=0.15, lw=0)


def _draw_weights(axis: Any, rows: Rows, layer: str, time: Time) -> None:
    steps, own = series(rows, P_STUDENT + layer)
    axis.plot(steps * time.scale, own, label="student", color="black")
    for name in layer_metrics(rows, P_TEACHER):
        teacher, fed = name.removeprefix(P_TEACHER).split("/", 1)
        if fed == layer:
            steps, p = series(rows, name)
            axis.plot(steps * time.scale, p, label=teacher)
    axis.set(title=layer, ylim=(-0.03, 1.03), xlabel=time.label)
    axis.legend(fontsize=7)


def _draw_changes(axis: Any, rows: Sequence[Mapping[str, str]], time: Time) -> None:
    """Draw a vertical line where a teacher was linked (+) or removed (-)."""
    changes: dict[float, list[str]] = {}
    for row in rows:
        if row.get("event"):
            sign = "+" if row["event"] == "linked" else "-"
            changes.setdefault(float(row[STEP]) * time.scale, []).append(sign + row["teacher"])
    for step, names in changes.items():
        axis.axvline(step, color="gray", lw=0.6, ls=":")
        axis.text(step, 0.5, " ".join(names), fontsize=5, rotation=90, ha="right", va="center", color="gray")


def draw_shares(
    panels: Mapping[str, NDArray[np.float64]], layers: Sequence[str], columns: Sequence[str], target: Path
) -> None:
    """Draw a panel of layers by columns for each measure, with the layer next to the input at the bottom.

    Args:
        panels: Title -> (layers, columns) shares from 0 to 1; NaN is left blank.
        layers: Names of the layers, from input to output.
        columns: Names of the columns.
        target: The file of the plot.
    """
    from matplotlib.figure import Figure

    size = (1.5 + (1.2 + 0.8 * len(columns)) * len(panels), 1.5 + 0.6 * len(layers))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, shares) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(shares, origin="lower", aspect="auto", vmin=0, vmax=1)
        for (i, k), share in np.ndenumerate(shares):
            if not np.isnan(share):
                axis.text(k, i, f"{share:.2f}", ha="center", va="center", color="white" if share < 0.5 else "black")
        axis.set(title=title, xlabel="column")
        axis.set_xticks(range(len(columns)), [name.replace("$", r"\$") for name in columns])
        axis.set_yticks(range(len(layers)), layers)
    figure.colorbar(image, ax=axes)
    save_figure(figure, target)


def layer_metrics(rows: Rows, prefix: str) -> list[str]:
    """The metrics that start with `prefix`, in the order of the net's layers."""
    order = {"conv": 0, "fc": 1, "policy": 2, "value": 3}
    names = {name for row in rows for name in row if name.startswith(prefix)}
    return sorted(names, key=lambda name: (order.get(name.rsplit("/", 1)[1].rstrip("0123456789"), 0), name))


def layer_names(rows: Rows, prefix: str) -> list[str]:
    """The layers that have a metric `prefix + layer`, in the order of the net."""
    return [name.removeprefix(prefix) for name in layer_metrics(rows, prefix)]


def save_figure(figure: Figure, target: Path) -> None:
    """Write a figure atomically."""
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=110)
