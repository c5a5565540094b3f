"""`kfrl supervised eval`: errors of a classifier on test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from kfrl.errors import UserError


@dataclass(frozen=True)
class EvalFlags:
    """Count a classifier's errors on the test images of its data set, or of another with the same classes."""

    classifier: tyro.conf.Positional[str]
    """A run's folder, a student's file, or a data set, whose best run is taken."""
    data: str | None = None
    """Another data set. Default: the classifier's own."""
    data_dir: Path | None = None
    """Where the images are. Default: the run's --data-dir, or else the user's cache folder."""
    corrupt: tuple[float, ...] = ()
    """Evaluate also with these percentages of each image's pixels replaced by noise: --corrupt 10 20 30."""
    json: Path | None = None
    """Also write the result here."""
    runs: Path = Path("runs")
    """Where your runs are."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(EvalFlags, prog="kfrl supervised eval", args=list(argv))
    _check_percents(flags.corrupt)
    import json

    from kfrl.runs.atomic import write_text
    from kfrl.runs.provenance import sha256
    from kfrl.supervised.classifiers import load_classifier
    from kfrl.supervised.data.corrupt import corrupted
    from kfrl.supervised.data.sets import load_data
    from kfrl.supervised.evaluate import score_classifier
    from kfrl.supervised.teachers import find_classifier, settings_of

    path = find_classifier(flags.classifier, flags.runs)
    loaded = load_classifier(path)
    config = settings_of(path, loaded.card)
    memory = 1e9 * config.memory_gb
    data = load_data(flags.data or config.data, flags.data_dir or config.data_dir, config.image_size, memory)
    result = score_classifier(loaded, data, config.batch_size)
    print(f"{path}: {loaded.card.net} by {loaded.card.method}, {loaded.card.epochs} epochs")
    if loaded.card.caveat:
        print(loaded.card.caveat)
    for note in data.notes:
        print(f"Note: {note}")
    wrong = result.total - result.correct
    print(f"{wrong:,} of {result.total:,} test images of {data.name} wrong: {100 * (1 - result.accuracy):.2f} % error")
    noisy = {}
    for percent in flags.corrupt:
        images = replace(data, test=corrupted(data.test, percent / 100))
        noisy[f"{percent:g}"] = score_classifier(load_classifier(path), images, config.batch_size)
        print(f"{percent:g} % of the pixels noise: {100 * (1 - noisy[f'{percent:g}'].accuracy):.2f} % error")
    if flags.json is not None:
        answer = {
            "classifier": str(path),
            "sha256": sha256(path),
            "teacher_sha256": list(loaded.card.teacher_sha256),
            "data": data.name,
            **result.to_dict(data.classes),
        }
        answer["corrupted"] = {percent: noise.to_dict() for percent, noise in noisy.items()}
        write_text(flags.json, json.dumps(answer, indent=1) + "\n")
        print(f"Wrote {flags.json}")
    return 0


def _check_percents(percents: Sequence[float]) -> None:
    wrong = [percent for percent in percents if not 0 <= percent <= 100]
    if wrong:
        raise UserError(f"--corrupt takes percents of an image's pixels, 0 to 100, got {wrong[0]:g}.")
