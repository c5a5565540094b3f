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
    """When a born-again tree draws its smeared cases: at every node (repeated, as in the paper), or once (global)."""
    node_cases: Annotated[int, Ge(2)] = 1000
    """repeated: real and smeared cases of a node."""
    global_cases: Count = 10_000
    """global: real and smeared cases in all."""
    alter: Fraction = 0.5
    """Probability that smearing replaces an attribute by another case's."""
    folds: Annotated[int, Ge(2)] = 10
    """cart: folds of the cross-validation that chooses the subtree."""


@dataclass(frozen=True)
class EnsembleConfig:
    """Ensembles as teachers."""

    trees: Count = 50
    """Number of trees in bagging and arcing."""
    selection_steps: Count = 200
    """library: steps of ensemble selection. Each adds one model, with replacement."""
    validation: Share = 0.2
    """Share of the training cases held back for validation: to select the library's ensemble."""


@dataclass(frozen=True)
class CompressionConfig:
    """Model compression."""

    ways: tuple[Way, ...] = ("munge",)
    """Training cases of the mimic: real (the table's alone), or these and synthetic ones by random, nbe or munge. Each
    way that is given trains its own mimics. The student is the mimic of the first way and the last of --cases."""
    cases: tuple[Count, ...] = (20_000,)
    """Number of synthetic cases. Each number that is given trains its own mimic."""
    hidden: Count = 128
    """Units of the mimic's only hidden layer."""
    updates: Count = 20_000
    """Updates of a mimic."""
    batch_size: Count = 256
    """Cases in an update."""
    lr: Positive = 0.003
    """Adam's learning rate at the start; it falls along a cosine."""
    swap: Fraction = 0.2
    """munge: p, the probability that an attribute is swapped with the nearest case."""
    scale: Positive = 5.0
    """munge: s; the standard deviation of a new value is the distance of the two old values, divided by s."""
    components: Count = 64
    """nbe: maximum number of components; the likelihood of held-back cases chooses the number."""


@dataclass(frozen=True)
class TabularConfig:
    """Train one small model to classify the cases of a table."""

    data: str = ""
    """The table: breastcancer, ionosphere, glass, soybean, sonar, letter-p1, letter-p2, adult, covtype, openml:ID, or
    the path of a CSV file with a header (.csv, .csv.gz)."""
    target: str = "class"
    """The column to predict."""
    nominal: str = ""
    """Columns to treat as nominal although they hold numbers, comma-separated; `all` for every column. Columns without
    any number are always nominal."""
    method: Literal["cart", "born-again-tree", "compression"] = "born-again-tree"
    """cart: a pruned tree, from the labels; born-again-tree: a tree, from a teacher; compression: a net with one hidden
    layer, from a teacher."""
    teacher: str = ""
    """bagging, arc-fs, arc-x4 (trees), library (ensemble selection), or the path of a run of kfrl tabular on the same
    training cases. Default: arc-fs for born-again-tree, library for compression."""
    teacher_sha256: tuple[str, ...] = ()
    """SHA-256 of the teacher's file, as a run's config.yaml has it; another file is refused. Empty: no check."""
    splits: Count = 1
    """Number of random splits into training and test cases. The student of the first split is kept."""
    test: Share = 0.1
    """Share of the cases, the same of every class, that a split tests on."""
    train_cases: Count | None = None
    """Number of training cases. Default: all that are not test cases."""
    seed: Annotated[int, Ge(0)] = 1
    """Seed of the splits and of all random draws in training. The splits depend on nothing else."""
    data_dir: Path | None = None
    """Folder of the tables (NAME.csv, NAME.csv.gz); missing ones are downloaded to it. Default: the user's cache
    folder."""
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
        """The teacher's name, with the method's default; "none" for a method without a teacher."""
        if self.method == "cart":
            return self.teacher or "none"
        return self.teacher or ("library" if self.method == "compression" else "arc-fs")
