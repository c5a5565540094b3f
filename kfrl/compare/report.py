"""One HTML page about runs, with charts and tables from their files; it needs no network.

The template escapes every name and text from those files, and the page loads nothing. BokehJS draws a chart in the
browser when its section is opened.
"""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from safetensors import SafetensorError, safe_open

from kfrl.compare.facts import flat, show, teachers_files, varying
from kfrl.compare.plots import (
    EPOCH,
    GUIDED,
    P_STUDENT,
    P_TEACHER,
    STUDENT,
    TRAINING,
    VALIDATION,
    Rows,
    games_curve,
    layer_names,
    series,
)
from kfrl.compare.sheet import Sheet
from kfrl.config import PlainLoader
from kfrl.errors import UserError
from kfrl.runs.folder import RunFolder
from kfrl.runs.metrics import STEP, read_metrics

POINTS = 150
"""Most points of a curve."""
RETURNS = 60
"""Points of the curve of training returns. Each is the mean over the games in its part of the run."""
R2 = "fold/r2/"
VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif"}
VIDEO_BYTES = 8e6
"""A larger video is not put into the page; the page names it."""
OPEN = 3
"""With more runs than this, the sections of runs are closed at first."""
UNTOLD = {"run_dir", "data_dir", "checkpoint_every", "worker_timeout"}
"""Settings that differ between runs without an effect on the results."""
COLORS = ("#1f77b4", "#d95f02", "#2ca02c", "#c2185b", "#8e6bbf", "#8c564b", "#0097a7", "#7f7f7f", "#9e9d24", "#e377c2")


@dataclass(frozen=True)
class Curve:
    """A curve, with its range if it is the mean of several runs."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart of curves with a common x axis."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Video:
    """A video of a game."""

    name: str
    kind: str
    data: str
    """The file as a data URI."""


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Sheet] = ()
    notes: Sequence[str] = ()
    videos: Sequence[Video] = ()
    of_run: bool = False
    """Whether it is about one run; such a section can be closed."""


# --- one run ------------------------------------------------------------------------------------------------


@dataclass
class RunFiles:
    """The readable content of a run's folder, which may be incomplete or damaged."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    rows: Rows = ()
    problems: list[str] = field(default_factory=list)
    """A sentence for each file that is missing or damaged."""

    @property
    def name(self) -> str:
        """The last three parts of its path."""
        return "/".join(self.path.parts[-3:])

    @property
    def empty(self) -> bool:
        """Whether no file of a run was found."""
        return not (self.config or self.card or self.evaluation or self.rows)

    @property
    def task(self) -> str:
        """The game or the data set."""
        return str(self.config.get("game") or self.config.get("data") or "unknown")


def read_files(path: Path) -> RunFiles:
    """Read the files of a run; missing and damaged files become `problems`."""
    run, folder = RunFiles(path), RunFolder(path)
    run.config = _mapping(run, folder.config, lambda text: yaml.load(text, PlainLoader))
    run.evaluation = _mapping(run, folder.evaluation, json.loads)
    try:
        run.rows = [row for row in read_metrics(folder.metrics) if math.isfinite(row[STEP])]
    except (OSError, ValueError, csv.Error) as error:
        run.problems.append(f"{folder.metrics.name} is damaged: {error}.")
    if not run.rows:
        run.problems.append(f"{folder.metrics.name} holds no row: there is no curve to draw.")
    try:
        with safe_open(folder.student, framework="numpy") as file:
            run.card = json.loads((file.metadata() or {}).get("card", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        run.problems.append(f"{folder.student.name} cannot be read: {error}.")
    if not isinstance(run.card, dict):
        run.card = {}
    return run


def _mapping(run: RunFiles, file: Path, parse: Any) -> dict[str, Any]:
    try:
        found = parse(file.read_text())
    except FileNotFoundError:
        run.problems.append(f"There is no {file.name}: the run was not finished, or is no run.")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        run.problems.append(f"{file.name} is damaged: {' '.join(str(error).split())}.")
        return {}
    if isinstance(found, dict):
        return found
    run.problems.append(f"{file.name} is damaged: it holds a {type(found).__name__}.")
    return {}


def run_section(run: RunFiles) -> Section:
    """The section about one run."""
    videos = list(_videos(run))
    return Section(
        f"{run.task}: {run.name}",
        facts=[(name, text) for name, text in _facts(run) if text],
        charts=list(_charts(run)),
        tables=list(_tables(run)),
        notes=[*run.problems, *_caveats(run)],
        videos=videos,
        of_run=True,
    )


def _facts(run: RunFiles) -> Iterator[tuple[str, str]]:
    config, card, found = run.config, run.card, run.evaluation
    yield "folder", str(run.path)
    yield "method", str(card.get("method") or config.get("method") or "unknown")
    yield "teachers", ", ".join(map(str, card.get("teachers") or ())) or str(config.get("teachers") or "none")
    yield "seed", show(config.get("seed"))
    yield "agent steps" if "steps" in found else "epochs", show(found.get("steps", config.get("epochs", "")))
    if isinstance(found.get("mean"), int | float):
        yield "student alone", _score(found)
    with_links = found.get("with_links")
    if isinstance(with_links, dict) and isinstance(with_links.get("mean"), int | float):
        yield "with its teachers' links", _score(with_links)
    test = found.get("test")
    if isinstance(test, dict):
        yield "test error", f"{test.get('error_percent', math.nan):.2f} % of {show(test.get('images'))} images"
    for name, other in (found.get("others") or {}).items() if isinstance(found.get("others"), dict) else ():
        if isinstance(other, dict):
            yield f"test error, {name}", f"{other.get('error_percent', math.nan):.2f} %"


def _score(found: Mapping[str, Any]) -> str:
    low, high = found.get("ci_low"), found.get("ci_high")
    text = f"{found['mean']:,.1f} points over {len(found.get('scores', ()))} games"
    if isinstance(low, int | float) and isinstance(high, int | float):
        text += f", 95 % interval over these games {low:,.1f} to {high:,.1f}"
    normalised = found.get("human_normalised")
    return text + (f"; human-normalised {normalised:.1%}" if isinstance(normalised, int | float) else "")


def _charts(run: RunFiles) -> Iterator[Chart]:
    rows = run.rows
    if not rows:
        return
    by_epoch = any(EPOCH in row for row in rows)
    if by_epoch:
        rows, label = [{**row, STEP: row[EPOCH]} for row in rows if EPOCH in row], "epochs"
        names = sorted({name for row in rows for name in row if name.startswith(VALIDATION)})
        curves = [Curve(_validation(name), *_points(rows, name, 100.0)) for name in names]
        yield Chart("Accuracy on the validation images", label, "%", curves)
    else:
        label = "agent steps"
        yield Chart("Returns", label, "raw points", [*_returns(rows)])
    layers = layer_names(rows, P_STUDENT)
    if layers:
        curves = []
        for layer in layers:
            curves.append(Curve(f"{layer}: student", *_points(rows, P_STUDENT + layer)))
            for name in sorted({n for row in rows for n in row if n.startswith(P_TEACHER)}):
                teacher, _, fed = name.removeprefix(P_TEACHER).partition("/")
                if fed == layer:
                    curves.append(Curve(f"{layer}: {teacher}", *_points(rows, name), dashed=True))
        yield Chart("p: how much of each layer comes from the student itself and from its teachers", label, "p", curves)


def _validation(name: str) -> str:
    return "student alone" if name == VALIDATION else name.removeprefix(f"{VALIDATION}_")


def _returns(rows: Rows) -> Iterator[Curve]:
    for name, label in ((GUIDED, "training, another net acts too"), (TRAINING, "games of the training")):
        at, returns = games_curve(rows, name, RETURNS)
        if len(at):
            yield Curve(label, at.tolist(), returns.tolist())
    steps, values = _points(rows, STUDENT)
    if steps:
        yield Curve("student alone", steps, values)


def _points(rows: Rows, name: str, factor: float = 1.0) -> tuple[list[float], list[float]]:
    """At most POINTS points of a metric; numbers that are not finite are left out."""
    steps, values = series(rows, name)
    known = np.isfinite(values)
    steps, values = steps[known], values[known] * factor
    if not len(steps):
        return [], []
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).astype(int))
    return steps[chosen].tolist(), values[chosen].tolist()


def _tables(run: RunFiles) -> Iterator[Sheet]:
    layers = layer_names(run.rows, P_STUDENT)
    if layers:
        teachers = sorted({n.split("/")[2] for row in run.rows for n in row if n.startswith(P_TEACHER)})
        columns = ["layer", "p of the student", *(f"p of {teacher}" for teacher in teachers), "R2 of the fold"]
        rows = [
            [
                layer,
                _last(run, P_STUDENT + layer),
                *(_last(run, f"{P_TEACHER}{teacher}/{layer}") for teacher in teachers),
                _last(run, R2 + layer),
            ]
            for layer in layers
        ]
        yield Sheet("Links at the end", columns, rows)
    scores = run.evaluation.get("scores")
    if isinstance(scores, list) and scores:
        steps = run.evaluation.get("episode_steps")
        lengths = steps if isinstance(steps, list) and len(steps) == len(scores) else [""] * len(scores)
        rows = [
            [str(index + 1), show(score), show(length)]
            for index, (score, length) in enumerate(zip(scores, lengths, strict=True))
        ]
        yield Sheet("Final games of the student alone", ["game", "points", "agent steps"], rows)
    settings = sorted(flat(run.config).items())
    if settings:
        yield Sheet("Settings", ["setting", "value"], [[name, show(value)] for name, value in settings], left=2)
    origin = [["commit", str(run.card.get("commit") or run.evaluation.get("commit") or "")]]
    origin += [["student's SHA-256", str(run.evaluation.get("sha256") or "")]]
    versions = run.evaluation.get("versions")
    origin += [[name, str(value)] for name, value in versions.items()] if isinstance(versions, dict) else []
    names = [str(name) for name in run.card.get("teachers") or ()]
    checksums = [str(one) for one in run.card.get("teacher_sha256") or ()]
    origin += [[f"SHA-256 of teacher {name}", one] for name, one in zip(names, checksums, strict=False)]
    yield Sheet("Where it came from", ["what", "value"], [row for row in origin if row[1]], left=2)


def _last(run: RunFiles, name: str) -> str:
    _, values = series(run.rows, name)
    return f"{values[-1]:.3f}" if len(values) else "-"


def _caveats(run: RunFiles) -> Iterator[str]:
    if run.card.get("caveat"):
        yield str(run.card["caveat"])
    if run.evaluation.get("scores"):
        yield "These games are of one student: they do not tell how students of other seeds differ."


def _videos(run: RunFiles) -> Iterator[Video]:
    for file in sorted(run.path.iterdir()) if run.path.is_dir() else ():
        kind = VIDEOS.get(file.suffix)
        if kind is None or not file.is_file():
            continue
        if file.stat().st_size > VIDEO_BYTES:
            run.problems.append(f"{file.name} is larger than {VIDEO_BYTES / 1e6:g} MB and not in this page.")
            continue
        yield Video(file.name, kind, f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}")


def differing_table(runs: Sequence[RunFiles]) -> Sheet | None:
    """The settings in which runs differ, a row for each run; None if they do not differ."""
    facts = [_told(run) for run in runs]
    names = varying(facts)
    if len(runs) < 2 or not names:
        return None
    rows = [[run.name, *(show(fact.get(name, "-")) for name in names)] for run, fact in zip(runs, facts, strict=True)]
    return Sheet("Settings that differ", ["run", *names], rows, left=1 + len(names))


def _told(run: RunFiles) -> dict[str, Any]:
    facts = {name: value for name, value in flat(run.config).items() if name not in UNTOLD}
    checksums = facts.pop("teacher_sha256", None)
    if isinstance(checksums, list):
        facts["teacher_sha256"] = teachers_files([str(each) for each in checksums])
    return facts


# --- the page -----------------------------------------------------------------------------------------------


def render(title: str, sections: Sequence[Section]) -> str:
    """The page as HTML.

    Raises:
        UserError: bokeh is not installed.
    """
    charts = {
        f"chart-{index}-{number}": {
            "x": chart.x,
            "y": chart.y,
            "title": chart.title,
            "curves": [{**vars(curve), **_numbers(curve)} for curve in chart.curves if len(curve.x)],
        }
        for index, section in enumerate(sections)
        for number, chart in enumerate(section.charts)
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        title=title,
        sections=sections,
        library=_library() if charts else "",
        # A run's name may contain </script>, which would end the element that holds the data.
        data=json.dumps({"charts": charts, "colors": COLORS}).replace("<", "\\u003c"),
        closed=sum(section.of_run for section in sections) > OPEN,
    )


def _library() -> str:
    """The source of BokehJS, from the Python package."""
    package = importlib.util.find_spec("bokeh")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "kfrl report draws with bokeh, which is not installed: pip install bokeh (or kfrl's extra: "
            "pip install -e '.[report]')."
        )
    scripts = Path(package.submodule_search_locations[0], "server", "static", "js")
    return "\n".join((scripts / name).read_text() for name in ("bokeh.min.js", "bokeh-api.min.js"))


def _numbers(curve: Curve) -> dict[str, list[float]]:
    """The curve's numbers, rounded to five digits, which a screen cannot distinguish from the full ones."""
    held = {"x": curve.x, "y": curve.y, "low": curve.low, "high": curve.high}
    return {name: [float(f"{value:.5g}") for value in values] for name, values in held.items()}
