"""Time of a sweep compared with the same runs started by hand, two at a time; and the memory of a sweep without trials.

python benchmarks/sweep_overhead.py --trials 24 --steps 10000 --output overhead.csv
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

from kfrl.sweep.descendants import descendants
from kfrl.sweep.estimate import memory_mb

KFRL = [sys.executable, "-m", "kfrl.cli.main"]
AT_ONCE = 2


@dataclass(frozen=True)
class Options:
    """Time runs on Breakout with one worker each and one final game."""

    output: Path
    """The CSV to write, a row for each round."""
    trials: int = 24
    steps: int = 10_000
    """Agent steps of each run."""
    envs: int = 8
    """Environments of each run's worker."""
    rounds: int = 2
    """Rounds, each with the runs by hand and the sweep."""


def settings(options: Options) -> dict[str, int]:
    """The common settings of all runs."""
    return {
        "workers": 1,
        "envs_per_worker": options.envs,
        "steps": options.steps,
        "eval_episodes": 1,
        "curve_points": 0,
    }


def by_hand(options: Options, folder: Path) -> float:
    """Seconds of the runs as separate commands, two at a time."""
    flags = [text for name, value in settings(options).items() for text in (f"--{name.replace('_', '-')}", str(value))]
    began, waiting, running = time.monotonic(), list(range(1, options.trials + 1)), list[subprocess.Popen[bytes]]()
    while waiting or running:
        for process in [one for one in running if one.poll() is not None]:
            if process.returncode:
                raise SystemExit(f"A run ended with code {process.returncode}.")
            running.remove(process)
        while waiting and len(running) < AT_ONCE:
            seed = waiting.pop(0)
            command = [
                "train",
                "--game",
                "Breakout",
                *flags,
                "--seed",
                str(seed),
                "--run-dir",
                str(folder / f"s{seed}"),
            ]
            running.append(subprocess.Popen([*KFRL, *command], stdout=subprocess.DEVNULL))
        time.sleep(0.05)
    return time.monotonic() - began


def by_sweep(options: Options, folder: Path) -> dict[str, float]:
    """Seconds of the sweep and until its first run started; its memory without the trials in MB, median and peak."""
    spec = folder / "sweep.yaml"
    spec.write_text(str({"settings": {**settings(options), "game": "Breakout", "seed": {"range": options.trials}}}))
    storage = folder / "sweep"
    began, first, looked = time.monotonic(), 0.0, 0.0
    samples: list[dict[int, float]] = []
    actors: set[int] = set()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*KFRL, "sweep", str(spec), "--storage", str(storage)], stdout=log, stderr=log)
        while process.poll() is None:
            if not first and any(storage.glob("*/config.yaml")):
                first = time.monotonic() - began
            if time.monotonic() - looked > 2.0:
                samples.append(memory_by_process(process.pid))
                actors |= trial_processes(samples[-1])
                looked = time.monotonic()
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"The sweep ended with code {process.returncode}: {(folder / 'log').read_text()[-500:]}")
    seconds = time.monotonic() - began
    beside = [sum(mb for pid, mb in sample.items() if pid not in actors) for sample in samples]
    return {
        "sweep_sec": seconds,
        "until_first_sec": first,
        "beside_trials_mb": statistics.median(beside),
        "peak_beside_trials_mb": max(beside),
    }


def memory_by_process(pid: int) -> dict[int, float]:
    """Proportional set size of a process and of each of its descendants, in MB."""
    return {one: memory_mb([one]) for one in (pid, *descendants(pid))}


def trial_processes(pids: Iterable[int]) -> set[int]:
    """Tune's actors and their descendants: the processes that train the trials.

    Ray gives an actor its name only after the actor has loaded PyTorch. A process that is found here once is therefore
    a trial's process in earlier samples too.
    """
    found: set[int] = set()
    for one in pids:
        with suppress(OSError):
            if b"Trainable" in Path(f"/proc/{one}/cmdline").read_bytes():
                found |= {one, *descendants(one)}
    return found


def main(options: Options) -> None:
    """Measure in turns, and print the ratios."""
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="kfrl-overhead-") as folder:
            (Path(folder) / "hand").mkdir()
            hand = by_hand(options, Path(folder) / "hand")
            rows.append({"hand_sec": hand, **by_sweep(options, Path(folder))})
        shown = {name: round(value, 1) for name, value in rows[-1].items()}
        print(f"round {number + 1}: {shown}, ratio {rows[-1]['sweep_sec'] / hand:.3f}", flush=True)
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(f"median ratio {statistics.median(row['sweep_sec'] / row['hand_sec'] for row in rows):.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
