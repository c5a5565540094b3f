"""The tables of docs/performance.md: every arm of `kfrl bench`, and the fast shape at 1, 2, 4, ... workers.

python benchmarks/throughput.py --rounds 5 --seconds 8
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

# As `kfrl` itself has it, before PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from agents.benchmark import COLUMNS, Benchmark, BenchmarkArm
from kfrl.cli.bench import machine
from kfrl.machine import cores


@dataclass(frozen=True)
class Options:
    """Measure throughput on this machine, in turns."""

    game: str = "Seaquest"
    """The game."""
    rounds: int = 5
    """How often each is measured."""
    seconds: float = 8.0
    """Length of a measurement, after a warm-up."""
    device: str = "cpu"
    """Where a2c and ppo learn."""
    only: str = ""
    """Comma-separated arms, as `kfrl bench` names them, and scaling; default: all."""


def scaling(benchmark: Benchmark) -> dict[str, BenchmarkArm]:
    """The fast shape with 1, 2, 4, ... workers, as many as there are cores."""
    counts = [2**power for power in range(cores().bit_length()) if 2**power <= cores()]
    arms = (benchmark.training("fast", f"a3c, {count} x 32", workers=count) for count in counts)
    return {f"fast-{count}": arm for count, arm in zip(counts, arms, strict=True)}


def main(options: Options) -> None:
    """Measure and print Markdown."""
    with TemporaryDirectory() as folder:
        benchmark = Benchmark(options.game, Path(folder), device=options.device)
        more = scaling(benchmark)
        wanted = [name.strip() for name in options.only.split(",") if name.strip()]
        if wanted:
            benchmark.pick([name for name in wanted if name != "scaling"])
        if not wanted or "scaling" in wanted:
            benchmark.arms |= more
        turns = benchmark.run(options.rounds, options.seconds)
        total = options.rounds * len(benchmark.arms)
        for _ in track(turns, "Measuring", total=total, console=Console(stderr=True), transient=True):
            pass
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"Medians of {options.rounds} x {options.seconds:g} s, in turns.\n")
    rows = [(*benchmark.row(arm), benchmark.share(arm, "fast-1")) for arm in benchmark.arms.values()]
    print(tabulate(rows, (*COLUMNS, "of one worker"), tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
