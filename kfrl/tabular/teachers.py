"""Tabular teachers: trained by name, or loaded from an earlier run."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from kfrl.errors import UserError, shortened, unknown, user_path
from kfrl.runs.folder import STUDENT_FILE
from kfrl.tabular.config import TabularConfig
from kfrl.tabular.ensembles import TREES, fit_library, select_ensemble, voting_trees
from kfrl.tabular.methods.base import Predictor, SplitTask, Teacher
from kfrl.tabular.students import Loaded, load_student
from kfrl.tabular.tables import Attribute, Cases, Table, Values

NAMES = (*TREES, "library")


def find_teacher(config: TabularConfig, table: Table) -> Loaded | None:
    """The student of an earlier run that is the teacher; None if each split trains its own, or the method has none.

    Raises:
        UserError: no such teacher, or one that does not fit the table.
    """
    name = config.teacher_name
    if config.method == "cart":
        if config.teacher not in ("", "none"):
            raise UserError(f"Method cart takes no teacher, got {name!r}. --method born-again-tree takes one.")
        return None
    if name in NAMES:
        return None
    path = user_path(name)
    if not path.exists():
        raise unknown("teacher", name, NAMES, "Or give the path of a run of kfrl tabular.")
    loaded = load_student(path / STUDENT_FILE if path.is_dir() else path)
    _check_fit(loaded, config, table)
    return loaded


def _check_fit(teacher: Loaded, config: TabularConfig, table: Table) -> None:
    card = teacher.card
    lacking = [name for name in table.classes if name not in card.classes]
    if lacking:
        raise UserError(
            f"The teacher {teacher.path} has {len(card.classes)} classes ({shortened(card.classes, 8)}), and the "
            f"student {len(table.classes)}: it cannot teach {shortened([repr(name) for name in lacking], 8)}. "
            "Train a teacher on this table, or remove those cases."
        )
    columns = [attribute.name for attribute in table.attributes]
    for attribute in card.attributes:
        if attribute.name not in columns:
            raise unknown("column", attribute.name, columns, f"The teacher {teacher.path} needs this column.")
        kinds = {a.name: a.categories is None for a in table.attributes}
        if kinds[attribute.name] != (attribute.categories is None):
            raise UserError(
                f"Column {attribute.name!r} is {'continuous' if attribute.categories is None else 'nominal'} for the "
                f"teacher {teacher.path}, and the opposite in this table. See --nominal."
            )
    learned = (card.seed, card.test, card.train_cases)
    ours = (config.seed, config.test, config.train_cases)
    if card.data == table.name and (learned != ours or config.splits > 1):
        raise UserError(
            f"The teacher {teacher.path} was trained on cases of {table.name} that this run would test on. Give the "
            f"run the teacher's own split: --splits 1 --seed {card.seed} --test {card.test}"
            + (f" --train-cases {card.train_cases}" if card.train_cases else "")
        )


def make_teacher(task: SplitTask, loaded: Loaded | None, table: Table) -> Teacher | None:
    """The teacher of one split; None if the method has none."""
    name = task.config.teacher_name
    if loaded is not None:
        return Teacher(_of_run(loaded, task, table.attributes, table.classes))
    if name in TREES:
        kind = cast(Literal["bagging", "arc-fs", "arc-x4"], name)
        count = task.config.ensemble.trees
        voters = voting_trees(kind, task.columns, task.labels, task.classes, count, task.generator)
        return Teacher(_encoded(task, voters), facts={"leaves_teacher": voters.leaves})
    return _library(task) if name == "library" else None


def _library(task: SplitTask) -> Teacher:
    columns, held = task.columns, task.validation
    models, left_out = fit_library(columns[~held], task.labels[~held], task.generator, task.say)
    for words in left_out:
        task.say(f"left out of the library: {words}")
    steps = task.config.ensemble.selection_steps
    chosen = select_ensemble(models, left_out, columns[held], task.labels[held], steps)
    facts = {
        "models_teacher": len(chosen.models),
        "bytes_teacher": sum(len(pickle.dumps(model.fitted)) for model in chosen.models),
    }
    others = {"best-single": _encoded(task, chosen.best), "best-net": _encoded(task, chosen.best_net)}
    return Teacher(_encoded(task, chosen), others, facts)


def _encoded(task: SplitTask, model: Any) -> Predictor:
    return lambda cases: model.predict(task.preparation.encode(cases))


def _of_run(loaded: Loaded, task: SplitTask, attributes: Sequence[Attribute], classes: Sequence[str]) -> Predictor:
    places = [loaded.card.classes.index(name) for name in classes]

    def predict(cases: Cases) -> NDArray[np.float64]:
        values = recoded(task.preparation.restore(cases), attributes, loaded.card.attributes)
        chosen = loaded.predict(values)[:, places]
        return np.asarray(chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1e-12))

    return predict


def recoded(values: Values, attributes: Sequence[Attribute], wanted: Sequence[Attribute]) -> Values:
    """Convert values (n, attributes) to the attributes `wanted`, by the names of attributes and categories."""
    index = {attribute.name: number for number, attribute in enumerate(attributes)}
    parts = []
    for attribute in wanted:
        number = index[attribute.name]
        column, ours = values[:, number], attributes[number].categories
        if ours is not None and attribute.categories is not None:
            theirs = {name: place for place, name in enumerate(attribute.categories)}
            places = np.array([*(theirs.get(name, -1) for name in ours), -1], dtype=np.float64)
            column = places[column.astype(np.int64)]
        parts.append(column)
    return np.stack(parts, axis=1)


def teacher_label(config: TabularConfig) -> str:
    """The teacher's name in folder names and tables."""
    name = config.teacher_name
    if name in (*NAMES, "none"):
        return name
    path = Path(name).resolve()
    return path.parent.name if path.name == STUDENT_FILE else path.name.removesuffix(".safetensors")
