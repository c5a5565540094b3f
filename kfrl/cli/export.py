"""`kfrl export`: write the student alone for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from kfrl.errors import UserError


@dataclass(frozen=True)
class ExportFlags:
    """Write the student of a run for other programs; its preprocessing is in the file, and as JSON beside it.

    The outputs of the written net are compared with the student's before the file is kept.
    """

    run: tyro.conf.Positional[str]
    """The folder of a run on a game or on images, or anything else that `--teachers` accepts."""
    to: Literal["onnx", "torchscript", "safetensors"] = "onnx"
    """onnx: for onnxruntime, without PyTorch. torchscript: for torch.jit.load. safetensors: the tensors by name."""
    output: Path | None = None
    """The file to write. Default: exported.onnx, exported.pt or exported.safetensors in the run's folder."""
    runs: Path = Path("runs")
    """The folder of your runs."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(ExportFlags, prog="kfrl export", args=list(argv))
    from agents.export import default_path, exportable
    from kfrl.nets.export import SUFFIXES

    output = flags.output or default_path(flags.run, flags.to)
    if output.suffix != SUFFIXES[flags.to]:
        raise UserError(f"A file of --to {flags.to} ends in {SUFFIXES[flags.to]}, got {output.name!r}.")
    if output.exists():
        raise UserError(f"{output} exists. Give another --output.")
    found = exportable(flags.run, flags.runs)
    worst = found.write(flags.to, output)
    print(f"Wrote {output}, {output.stat().st_size / 1e6:.1f} MB, and its description, {output.name}.json")
    tried = len(found.example["input"])
    print(f"On {tried} inputs its outputs are within {worst:.1g} of the student's.")
    if found.about.get("provenance", {}).get("caveat"):
        print(found.about["provenance"]["caveat"])
    if found.about.get("gymnasium", ...) is None:
        print("Its training rules press FIRE at the start of a life. Gymnasium has no such rule: press FIRE yourself.")
    elif flags.to == "onnx" and found.about["kind"] == "agent":
        print(f"Watch it play without kfrl or PyTorch: python examples/play_onnx.py {output}")
    return 0
