"""`kfrl supervised collect`: the logits of classifiers on a set's training images, computed once and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from kfrl.config import Count, Positive, split_names
from kfrl.errors import UserError


@dataclass(frozen=True)
class CollectFlags:
    """Store the teachers' logits on every training image.

    `kfrl supervised train --method kd --answers FILE` then learns from the file, without the teachers.
    """

    data: str
    """The images, as `kfrl supervised train --data` takes them."""
    teachers: str
    """Teachers, comma-separated: the data set of one of your runs, or the path of a run."""
    output: Path
    """The file, e.g. mnist.answers."""
    data_dir: Path | None = None
    """Where the images are, or are downloaded to. Default: the user's cache folder."""
    image_size: Count | None = None
    """Resize the images to this height and width."""
    memory_gb: Positive = 8.0
    """A folder of images that needs more memory is not loaded; its files are decoded batch by batch."""
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    runs: Path = Path("runs")
    """Where your runs are."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    from kfrl.config import checked

    flags = checked(tyro.cli(CollectFlags, prog="kfrl supervised collect", args=list(argv)))
    from rich.console import Console
    from rich.progress import Progress

    from kfrl.devices import check_device
    from kfrl.machine import size
    from kfrl.supervised.answers import collect
    from kfrl.supervised.data.sets import check_memory, load_data
    from kfrl.supervised.teachers import load_classifiers, settings_of

    if flags.output.exists():
        raise UserError(f"{flags.output} exists. Give another --output.")
    check_device(flags.device)
    check_memory(flags.memory_gb, flags.data)
    teachers = load_classifiers(split_names(flags.teachers), flags.runs)
    if not teachers:
        raise UserError("Whose answers? Give --teachers NAME[,NAME...]: the data set of an earlier run, or its path.")
    data = load_data(flags.data, flags.data_dir, flags.image_size, 1e9 * flags.memory_gb)
    # As in `kfrl supervised eval`: a net that is too large for more images was trained with a small batch.
    batch = min(settings_of(teacher.path, teacher.card).batch_size for teacher in teachers)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Collecting", total=len(data.train))
        for done in collect(flags.output, data, teachers, batch, flags.device):
            progress.update(task, completed=done)
    names = ", ".join(teacher.name for teacher in teachers)
    print(
        f"Wrote {flags.output}, {size(flags.output.stat().st_size)}: the logits of {names} on the "
        f"{len(data.train):,} training images of {data.name}"
    )
    print(
        f"Learn from it: kfrl supervised train --data {data.name} --method kd --augment none --answers {flags.output}"
    )
    return 0
