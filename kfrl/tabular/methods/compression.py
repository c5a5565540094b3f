"""Model compression (Bucila, Caruana and Niculescu-Mizil 2006): a small net mimics an ensemble on synthetic cases."""

from __future__ import annotations

import numpy as np

from kfrl.tabular.config import Way
from kfrl.tabular.methods.base import Learned, Predictor, SplitTask, Teacher
from kfrl.tabular.mimic_net import Lesson, train_mimic
from kfrl.tabular.naive_bayes import estimate
from kfrl.tabular.students import Net
from kfrl.tabular.synthetic import munge, random_cases
from kfrl.tabular.tables import Cases


def learn(task: SplitTask, teacher: Teacher | None) -> Learned:
    """Train a mimic for every way and number of synthetic cases; the student is that of the first way, last number."""
    assert teacher is not None
    settings, mimics = task.config.compression, dict[str, Net]()
    for way in settings.ways:
        made = synthesise(task, way, max(settings.cases))
        cases = np.concatenate([task.cases, made])
        lesson = Lesson(task.preparation.encode(cases), _labelled(teacher.predict, cases))
        real = len(cases) - len(made)
        for count in settings.cases if way != "real" else (0,):
            name = f"{way}-{count}"
            task.say(f"mimic: {name}")
            part = Lesson(lesson.columns[: real + count], lesson.targets[: real + count])
            mimics[name] = train_mimic(part, settings, task.seed())
    first = [name for name in mimics if name.startswith(f"{settings.ways[0]}-")][-1]
    others: dict[str, Predictor] = {name: _predictor(task, net) for name, net in mimics.items()}
    return Learned(mimics[first], {"teacher": teacher.predict, **teacher.others, **others}, teacher.facts)


def _predictor(task: SplitTask, net: Net) -> Predictor:
    return lambda cases: net.predict(task.preparation.encode(cases))


def _labelled(predict: Predictor, cases: Cases, block: int = 4096) -> Cases:
    return np.concatenate([predict(cases[start : start + block]) for start in range(0, len(cases), block)])


def synthesise(task: SplitTask, way: Way, count: int) -> Cases:
    """Make synthetic cases (count, attributes) from the training cases; none for `real`."""
    cases, settings, generator = task.cases, task.config.compression, task.generator
    nominal = task.preparation.nominal
    if way == "real":
        return cases[:0]
    if way == "random":
        return random_cases(cases, count, generator)
    if way == "nbe":
        return estimate(cases, nominal, settings.components, generator).sample(count, generator)
    made = [cases[:0]]
    while sum(map(len, made)) < count:
        task.say(f"munge: {sum(map(len, made)):,} of {count:,} cases")
        made.append(munge(cases, nominal, settings.swap, settings.scale, generator))
    return np.concatenate(made)[:count]
