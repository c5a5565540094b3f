"""Pictures of a run: the tree, and error over the number of synthetic cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kfrl.compare.plots import Rows, save_figure
from kfrl.tabular.tables import Preparation
from kfrl.tabular.trees import Tree

MOST_LEAVES = 64
"""A larger tree is not readable; its deeper levels are drawn as `...`."""


def draw_tree(tree: Tree, preparation: Preparation, classes: Sequence[str], target: Path) -> None:
    """Draw a tree from top to bottom: conditions, and leaves with their class and their share of the cases."""
    depths = tree.depths()
    shown = _shown_depth(tree, depths)
    ends = (tree.column < 0) | (np.array(depths) >= shown)
    places, leaves = _places(tree, ends)
    figure = Figure(figsize=(max(4.0, 0.95 * leaves), 1.6 + 0.8 * shown), layout="constrained")
    axis = figure.subplots()
    axis.axis("off")
    axis.set(xlim=(-0.6, leaves - 0.4), ylim=(-shown - 0.5, 0.5))
    _draw_node(axis, tree, preparation, classes, ends, places, 0, 0)
    save_figure(figure, target)


def _shown_depth(tree: Tree, depths: Sequence[int]) -> int:
    for depth in range(1, max(depths) + 1):
        if (
            sum(level == depth or (level < depth and tree.column[i] < 0) for i, level in enumerate(depths))
            > MOST_LEAVES
        ):
            return max(1, depth - 1)
    return max(depths)


def _places(tree: Tree, ends: Any) -> tuple[dict[int, float], int]:
    """Horizontal position of each node, and the number of leaves; an inner node is centred above its children."""
    places: dict[int, float] = {}
    count = 0

    def place(node: int) -> float:
        nonlocal count
        if ends[node]:
            places[node] = float(count)
            count += 1
        else:
            places[node] = (place(int(tree.left[node])) + place(int(tree.right[node]))) / 2
        return places[node]

    place(0)
    return places, count


def _draw_node(
    axis: Any,
    tree: Tree,
    preparation: Preparation,
    classes: Sequence[str],
    ends: Any,
    places: dict[int, float],
    node: int,
    depth: int,
) -> None:
    x = places[node]
    box = {"boxstyle": "round,pad=0.25", "lw": 0.6}
    if ends[node]:
        best = int(tree.shares[node].argmax())
        more = "" if tree.column[node] < 0 else "..."
        text = f"{_plain(classes[best])}\n{100 * tree.reach[node]:.1f} %{more}"
        color = matplotlib.colormaps["tab20"](best % 20)
        axis.text(x, -depth, text, ha="center", va="center", fontsize=6, bbox={**box, "fc": (*color[:3], 0.35)})
        return
    words = preparation.condition(int(tree.column[node]), float(tree.threshold[node]))
    for side, word in zip((int(tree.left[node]), int(tree.right[node])), ("yes", "no"), strict=True):
        axis.plot([x, places[side]], [-depth, -depth - 1], color="gray", lw=0.6, zorder=0)
        axis.text((x + places[side]) / 2, -depth - 0.5, word, fontsize=5, color="gray", ha="center")
        _draw_node(axis, tree, preparation, classes, ends, places, side, depth + 1)
    axis.text(x, -depth, _plain(words[0]), ha="center", va="center", fontsize=6, bbox={**box, "fc": "white"})


def _plain(text: str) -> str:
    """Escape dollars, which begin a formula."""
    return text.replace("$", r"\$")


def draw_sizes(rows: Rows, target: Path) -> bool:
    """Draw the mimics' error over the number of synthetic cases, means over splits; False below two numbers."""
    held: dict[str, dict[int, float]] = {}
    for name in rows[0]:
        if found := re.fullmatch(r"test/rmse_(random|nbe|munge)-(\d+)", name):
            held.setdefault(found[1], {})[int(found[2])] = float(np.mean([row[name] for row in rows]))
    if max(map(len, held.values()), default=0) < 2:
        return False
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for way, points in held.items():
        sizes = sorted(points)
        axis.plot(sizes, [points[size] for size in sizes], "o-", markersize=3, label=way)
    levels = {
        "real-0": "real cases alone",
        "teacher": "ensemble",
        "best-single": "best single model",
        "best-net": "best net",
    }
    for index, (name, label) in enumerate(levels.items()):
        if f"test/rmse_{name}" in rows[0]:
            level = float(np.mean([row[f"test/rmse_{name}"] for row in rows]))
            axis.axhline(level, color="black", ls=("-", "--", ":", "-.")[index], lw=0.9, label=label)
    axis.set(xscale="log", xlabel="synthetic cases", ylabel="RMSE of the probabilities on test cases")
    axis.legend(fontsize=7)
    save_figure(figure, target)
    return True
