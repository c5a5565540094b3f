"""`kfrl supervised eval`: errors of a classifier on test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class EvalFlags:
    """Count a classifier's errors on the test images of its data set, or of another with the same classes."""

    classifier: tyro.conf.Positional[str]
    """A run's folder, a file, or a data set: its best run."""
    data: str | None = None
    """Other images than those that it learned."""
    data_dir: Path | None = None
    """Where the images are. Default: as the run has it, or else the user's cache folder."""
    json: Path | None = None
    """Also write the result here."""
    runs: Path = Path("runs")
    """Where your runs are."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(EvalFlags, prog="kfrl supervised eval", args=list(argv))
    import json

    from kfrl.atomic import write_text
    from kfrl.config import load_config
    from kfrl.provenance import sha256
    from kfrl.supervised.classifiers import load_classifier
    from kfrl.supervised.config import SupervisedConfig
    from kfrl.supervised.data import load_data
    from kfrl.supervised.evaluation import score_classifier
    from kfrl.supervised.teachers import find_classifier

    path = find_classifier(flags.classifier, flags.runs)
    loaded = load_classifier(path)
    settings = path.parent / "config.yaml"
    config = load_config(settings, SupervisedConfig) if settings.is_file() else SupervisedConfig(data=loaded.card.data)
    data = load_data(flags.data or config.data, flags.data_dir or config.data_dir, config.image_size)
    result = score_classifier(loaded, data)
    print(f"{path}: {loaded.card.net} by {loaded.card.method}, {loaded.card.epochs} epochs")
    for note in data.notes:
        print(f"Note: {note}")
    wrong = result.total - result.correct
    print(f"{wrong:,} of {result.total:,} test images of {data.name} wrong: {100 * (1 - result.accuracy):.2f} % error")
    if flags.json is not None:
        answer = {"classifier": str(path), "sha256": sha256(path), "data": data.name, **result.to_dict(data.classes)}
        write_text(flags.json, json.dumps(answer, indent=1) + "\n")
        print(f"Wrote {flags.json}")
    return 0
