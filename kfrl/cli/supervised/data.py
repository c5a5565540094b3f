"""`kfrl supervised data`: the data sets, the nets and the methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class DataFlags:
    """List the data sets, the nets and the methods."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    tyro.cli(DataFlags, prog="kfrl supervised data", args=list(argv))
    from rich.table import Column, Table

    from kfrl.cli.console import table_console
    from kfrl.nets.images.registry import NAMES
    from kfrl.supervised.data.sets import SETS
    from kfrl.supervised.methods import method_names

    table = Table(
        Column("--data", no_wrap=True),
        "images",
        "classes",
        "training",
        "test",
        "augmentation",
        "net",
        title="Data sets",
    )
    for name, known in SETS.items():
        shape = "x".join(map(str, known.shape))
        counts = [f"{count:,}" for count in known.counts]
        table.add_row(name, shape, str(known.num_classes), *counts, known.augment, known.net)
    console = table_console()
    console.print(table)
    console.print("Also NAME-half, NAME-other-half, NAME-no-CLASS, and the path of a folder of images by class.")
    console.print(f"--net: {', '.join(NAMES)}; other numbers in a name are possible.", soft_wrap=True)
    console.print(f"--method: {', '.join(method_names())}", soft_wrap=True)
    return 0
