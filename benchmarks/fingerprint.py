"""Print hashes of students trained with fixed seeds; run it before and after a change that must not change results.

    python benchmarks/fingerprint.py > before.txt

All runs use one thread: a2c and ppo play real games, and the supervised methods use the data set `digits`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from safetensors.torch import load_file

from kfrl.cli.main import main

GAMES = [
    "--game",
    "Breakout",
    "--steps",
    "640",
    "--envs-per-worker",
    "4",
    "--eval-episodes",
    "0",
    "--curve-points",
    "0",
]
IMAGES = ["--data", "digits", "--epochs", "2", "--net", "mlp-32-16", "--batch-size", "64"]
SEED = "7"
RUNS: dict[str, list[str]] = {
    "a2c": ["train", *GAMES, "--algo", "a2c"],
    "ppo": ["train", *GAMES, "--algo", "ppo", "--t-max", "32", "--batch-size", "64"],
    "a2c knowledge-flow": ["train", *GAMES, "--algo", "a2c", "--teachers", "pong", "--fold-at", "None"],
    "ppo knowledge-flow": [
        "train",
        *GAMES,
        "--algo",
        "ppo",
        "--t-max",
        "32",
        "--batch-size",
        "64",
        "--teachers",
        "pong",
        "--fold-at",
        "None",
    ],
    "a2c fine-tune": ["train", *GAMES, "--algo", "a2c", "--teachers", "pong", "--method", "fine-tune"],
    "a2c progressive": ["train", *GAMES, "--algo", "a2c", "--teachers", "pong", "--method", "progressive"],
    "supervised baseline": ["supervised", "train", *IMAGES],
    "supervised kd": ["supervised", "train", *IMAGES, "--method", "kd", "--teachers", "baseline"],
    "supervised knowledge-flow": [
        "supervised",
        "train",
        *IMAGES,
        "--method",
        "knowledge-flow",
        "--teachers",
        "baseline",
    ],
    "supervised born-again": ["supervised", "train", *IMAGES, "--method", "born-again"],
    "supervised mutual": ["supervised", "train", *IMAGES, "--method", "mutual"],
}


def fingerprint(path: Path) -> str:
    """The hash of a file's tensors, without its header."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def train(flags: list[str], folder: Path, baseline: Path) -> str:
    """Train into `folder`; returns the hash of the student, or the end of the output of a failed run."""
    words = [str(baseline) if word == "baseline" else word for word in flags]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = main([*words, "--seed", SEED, "--run-dir", str(folder)])
    student = folder / "student.safetensors"
    return fingerprint(student) if code == 0 and student.is_file() else f"failed: {shown.getvalue()[-300:]}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name, flags in RUNS.items():
            folder = Path(temporary) / name.replace(" ", "-")
            print(f"{name:28}{train(flags, folder, Path(temporary) / 'supervised-baseline')}", flush=True)
