"""Every setting of `kfrl tabular train`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from kfrl.config import Count, Fraction, Positive, split_names

Share = Annotated[float, Gt(0.0), Lt(1.0)]
Way = Literal["real", "random", "nbe", "munge"]


@dataclass(frozen=True)
class TreeConfig:
    """CART and born-again trees."""

    grow: Literal["repeated", "global"] = "repeated"
    """How a born-again tree gets its cases: drawn anew at every node (paper), or once for the whole tree."""
    node_cases: Annotated[int, Ge(2)] = 1000
    """repeated: real and made cases that a node decides by."""
    global_cases: Count = 10_000
    """global: real and made cases in all."""
    alter: Fraction = 0.5
    """Probability that smearing replaces an attribute by another case's."""
    folds: Annotated[int, Ge(2)] = 10
    """cart: folds of the cross-validation that chooses the subtree."""


@dataclass(frozen=True)
class EnsembleConfig:
    """Teachers."""

    trees: Count = 50
    """Of bagging and arcing."""
    selection_steps: Count = 200
    """library: models that ensemble selection adds, each as often as it helps."""
    validation: Share = 0.2
    """Share of the training cases that chooses: the library's ensemble, and when the mimic stops."""


@dataclass(frozen=True)
class CompressionConfig:
    """Model compression."""

    ways: tuple[Way, ...] = ("munge",)
    """Where the mimic's cases come from: real (the training cases alone), or these and synthetic ones by random, nbe or
    munge. Of several each gets its mimics; the first one's, at the last of --cases, is the student."""
    cases: tuple[Count, ...] = (20_000,)
    """How many synthetic cases; of several numbers each gets a mimic."""
    hidden: Count = 128
    """Units of the mimic's one hidden layer."""
    updates: Count = 20_000
    """Of a mimic."""
    batch_size: Count = 256
    """Cases of an update."""
    lr: Positive = 0.003
    """Adam's learning rate at the start; it falls along a cosine."""
    swap: Fraction = 0.2
    """munge: p, the probability that an attribute is traded with the nearest case."""
    scale: Positive = 5.0
    """munge: s; the deviation of a new value is the distance of the two old ones over s."""
    components: Count = 64
    """nbe: at most so many components; fewer where held-back cases are likelier under fewer."""


@dataclass(frozen=True)
class TabularConfig:
    """Learn to classify the cases of a table by one small model."""

    data: str = ""
    """The table: breastcancer, ionosphere, glass, soybean, sonar, letter-p1, letter-p2, adult, covtype, openml:ID, or
    the path of a CSV file with a header (.csv, .csv.gz)."""
    target: str = "class"
    """The column to predict."""
    nominal: str = ""
    """Columns of names although numbers stand in them, comma-separated; `all` for every one. Columns without any number
    are nominal in any case."""
    method: Literal["cart", "born-again-tree", "compression"] = "born-again-tree"
    """A pruned tree from the labels; a tree from a teacher; a net with one hidden layer from a teacher."""
    teacher: str = ""
    """bagging, arc-fs, arc-x4 (trees), library (ensemble selection), or the path of a run of kfrl tabular on the same
    training cases. Default: arc-fs for born-again-tree, library for compression."""
    splits: Count = 1
    """Draw test cases, learn and test so many times. The student of the first split is kept."""
    test: Share = 0.1
    """Share of the cases, of every class alike, that a split tests on."""
    train_cases: Count | None = None
    """Learn from so many of the others only. Default: all."""
    seed: Annotated[int, Ge(0)] = 1
    """Of the splits, and of everything that is drawn in learning. The splits depend on nothing else."""
    data_dir: Path | None = None
    """Where tables are looked for (NAME.csv, NAME.csv.gz), or downloaded to. Default: the user's cache folder."""
    run_dir: Path | None = None
    """The run's folder. Default: runs/<data>/<method>/<teacher>-s<seed>-<time>."""
    tree: TreeConfig = field(default_factory=TreeConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)

    @property
    def nominal_names(self) -> tuple[str, ...]:
        """`nominal` split at its commas."""
        return split_names(self.nominal)

    @property
    def teacher_name(self) -> str:
        """The teacher in force; "none" of a method without."""
        if self.method == "cart":
            return self.teacher or "none"
        return self.teacher or ("library" if self.method == "compression" else "arc-fs")
