"""`kfrl bench`: the speed of emulation, training and evaluation on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Ge, Gt

from kfrl.config import checked

if TYPE_CHECKING:
    from rich.table import Table

    from agents.benchmark import Benchmark


@dataclass(frozen=True)
class BenchArgs:
    """Measure steps a second of the emulator, of training and of evaluation on this machine, in turns."""

    game: str = "Seaquest"
    """The game to measure on; games differ in speed."""
    only: str = ""
    """Comma-separated: ceiling, random, paper, fast, fast-1, fast-2, fast-4, ... (that many workers, if fewer than the
    cores), flow-1, flow-2, flow-imitation, a2c, acktr, ppo, flavour, evaluation, evaluation-1. Default: all."""
    rounds: Annotated[int, Ge(1)] = 5
    """Measurements of each arm; the table shows medians."""
    seconds: Annotated[float, Gt(0.0)] = 8.0
    """Seconds of a measurement, after a warm-up; acktr goes on to the end of an inverse period."""
    device: str = "cpu"
    """The device on which a2c, acktr and ppo learn."""
    json: Path | None = None
    """Also write every measurement to this file."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    args = checked(tyro.cli(BenchArgs, prog="kfrl bench", args=list(argv)))
    from tempfile import TemporaryDirectory

    from rich.console import Console
    from rich.progress import track

    from agents.benchmark import Benchmark

    with TemporaryDirectory(prefix="kfrl-bench-") as folder:
        benchmark = Benchmark(args.game, Path(folder), device=args.device)
        if args.only:
            benchmark.pick([name.strip() for name in args.only.split(",")])
        turns = benchmark.run(args.rounds, args.seconds)
        total = args.rounds * len(benchmark.arms)
        for _ in track(turns, "Measuring", total=total, console=Console(stderr=True), transient=True):
            pass
    Console().print(_table(benchmark, args))
    if args.json is not None:
        from kfrl.runs.atomic import write_text

        write_text(args.json, json.dumps(_answer(benchmark, args), indent=1) + "\n")
    return 0


def _table(benchmark: Benchmark, args: BenchArgs) -> Table:
    from rich.table import Table

    from agents.benchmark import COLUMNS

    facts = machine()
    caption = (
        f"{benchmark.protocol.game}, {facts['cores']} cores of {facts['processor']}, torch {facts['torch']}, ale-py "
        f"{facts['ale_py']}; median (lowest to highest) of {args.rounds} x {args.seconds:g} s, in turns"
    )
    table = Table(*COLUMNS, caption=caption)
    for column in table.columns[1:]:
        column.justify = "right"
    for arm in benchmark.arms.values():
        table.add_row(*benchmark.row(arm))
    return table


def _answer(benchmark: Benchmark, args: BenchArgs) -> dict[str, Any]:
    arms = {
        arm.name: {"title": arm.title, "samples": [asdict(s) for s in arm.samples]} for arm in benchmark.arms.values()
    }
    return {"machine": machine(), "game": benchmark.protocol.game, "seconds": args.seconds, "arms": arms}


def machine() -> dict[str, Any]:
    """The hardware and the versions that rates depend on."""
    import platform

    import ale_py
    import torch

    from kfrl.machine import cores

    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cores": cores(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ale_py": ale_py.__version__,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
