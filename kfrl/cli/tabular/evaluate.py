"""`kfrl tabular eval`: errors of a student on cases, and its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from kfrl.errors import UserError, user_path

if TYPE_CHECKING:
    from kfrl.tabular.students import Loaded


@dataclass(frozen=True)
class EvalFlags:
    """Count a student's errors on the test cases of its run's first split, or on the cases of another file."""

    student: tyro.conf.Positional[str]
    """A run's folder, or a student's file."""
    data: Path | None = None
    """A CSV file with the student's input columns; without the target column there are predictions only."""
    predictions: Path | None = None
    """Write each case's prediction and the probabilities of all classes to this CSV file."""
    json: Path | None = None
    """Also write the result here."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(EvalFlags, prog="kfrl tabular eval", args=list(argv))
    import json

    from kfrl.runs.atomic import write_text
    from kfrl.runs.folder import STUDENT_FILE
    from kfrl.runs.provenance import sha256
    from kfrl.tabular.students import load_student

    path = user_path(flags.student)
    loaded = load_student(path / STUDENT_FILE if path.is_dir() else path)
    values, given = _cases(loaded, flags.data)
    probabilities = loaded.predict(values)
    answers = [loaded.card.classes[index] for index in probabilities.argmax(axis=1)]
    print(f"{loaded.path}: {loaded.card.method} of {loaded.card.data}, teacher {loaded.card.teacher}")
    result: dict[str, Any] = {"student": str(loaded.path), "sha256": sha256(loaded.path), "cases": len(answers)}
    if given is not None:
        wrong = sum(answer != right for answer, right in zip(answers, given, strict=True))
        result |= {"wrong": wrong, "error_percent": 100 * wrong / len(answers), "per_class": _by_class(answers, given)}
        print(f"{wrong:,} of {len(answers):,} cases wrong: {result['error_percent']:.2f} % error")
        for name, row in result["per_class"].items():
            print(f"  {name}: {row['wrong']:,} of {row['cases']:,} wrong")
        strange = sorted(set(given) - set(loaded.card.classes))
        if strange:
            print(f"Note: the student does not have the classes {', '.join(strange)}; all their cases are errors.")
    if flags.predictions is not None:
        write_text(flags.predictions, _csv(loaded, probabilities, answers))
        print(f"Wrote {flags.predictions}")
    if flags.json is not None:
        write_text(flags.json, json.dumps(result, indent=1) + "\n")
        print(f"Wrote {flags.json}")
    return 0


def _cases(loaded: Loaded, data: Path | None) -> tuple[Any, list[str] | None]:
    """Values and classes of the cases to predict; None for the classes in a file without the target."""
    from kfrl.config import load_config
    from kfrl.tabular.config import TabularConfig
    from kfrl.tabular.run import split_of
    from kfrl.tabular.tables import load_table, read_columns, values_like

    if data is not None:
        columns = read_columns(data)
        given = columns.get(loaded.card.target)
        return values_like(loaded.card.attributes, columns, str(data)), given
    settings = loaded.path.parent / "config.yaml"
    if not settings.is_file():
        raise UserError(f"{loaded.path} is not in a run's folder, so its test cases are unknown. Give --data FILE.csv")
    config = load_config(settings, TabularConfig)
    table = load_table(config.data, config.target, config.nominal_names, config.data_dir)
    test = split_of(table, config, 0).test
    return table.values[test], [table.classes[label] for label in table.labels[test]]


def _by_class(answers: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = {name: {"cases": 0, "wrong": 0} for name in sorted(set(given))}
    for answer, right in zip(answers, given, strict=True):
        counts[right]["cases"] += 1
        counts[right]["wrong"] += answer != right
    return counts


def _csv(loaded: Loaded, probabilities: Any, answers: Sequence[str]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["predicted", *loaded.card.classes])
    for answer, row in zip(answers, probabilities.tolist(), strict=True):
        writer.writerow([answer, *(f"{value:.6g}" for value in row)])
    return text.getvalue()
