"""Upload of a run's student to the Hugging Face Hub, with its scores and a model card."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agents.teachers.formats import Card
from agents.teachers.formats import read_card as read_agent_card
from envs.games import Game
from kfrl.errors import UserError
from kfrl.runs.cards import has_format
from kfrl.runs.folder import RunFolder
from kfrl.runs.provenance import sha256
from kfrl.supervised import classifiers

PREFIX = "hub:"
STUDENT, CARD = "student.safetensors", "README.md"
OFFLINE = "The Hub cannot be reached. Nothing was uploaded; try again with a network."


@dataclass(frozen=True)
class Upload:
    """The files for an upload to the Hub."""

    repo: str
    """owner/name"""
    files: Mapping[str, Path | bytes]
    """Name on the Hub -> a file of the run, or the content of a new file."""

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of each file."""
        for name, content in self.files.items():
            yield name, len(content) if isinstance(content, bytes) else content.stat().st_size


def repository(place: str) -> str:
    """The OWNER/REPO of `hub:OWNER/REPO`.

    Raises:
        UserError: the text does not have this form.
    """
    found = re.fullmatch(rf"{PREFIX}([\w.-]+/[\w.-]+)", place)
    if found is None:
        raise UserError(f"Expected hub:OWNER/REPO, got {place!r}.")
    return found[1]


def upload_of(run: Path, place: str, license: str | None = None) -> Upload:
    """Collect the files of a run for the Hub, and write its model card. Nothing is sent.

    Args:
        run: The run's folder.
        place: hub:OWNER/REPO
        license: The license's name on the Hub, e.g. `mit`.

    Raises:
        UserError: the folder is not that of a run, has no student yet, or has the scores of another student.
    """
    repo, folder = repository(place), RunFolder.of_run(run)
    if not folder.student.is_file():
        raise UserError(f"{run} has no student yet. Continue the run: kfrl train --resume {run}")
    result = json.loads(folder.evaluation.read_text()) if folder.evaluation.is_file() else {}
    checksum = sha256(folder.student)
    if result.get("sha256", checksum) != checksum:
        raise UserError(
            f"{folder.evaluation} has the scores of a student with the SHA-256 {result['sha256']}, and "
            f"{folder.student} has another, {checksum}. Score this student first: kfrl eval {run}"
        )
    about = _classifier(folder) if has_format(folder.student, classifiers.FORMAT) else _agent(folder, result)
    text = _text(about, repo, checksum, license)
    files: dict[str, Path | bytes] = {
        CARD: text.encode(),
        STUDENT: folder.student,
        "config.yaml": _without_own_paths(folder).encode(),
    }
    beside = (folder.evaluation, folder.metrics, folder.curves, *sorted(folder.path.glob("*.mp4")))
    return Upload(repo, files | {path.name: path for path in beside if path.is_file()})


@dataclass(frozen=True)
class _About:
    """The content of a model card."""

    title: str
    task: str
    """The Hub's pipeline tag."""
    tags: tuple[str, ...]
    data: str
    """The game or the data set."""
    metric: tuple[str, float | str] | None
    """The Hub's name of the metric, and its value."""
    scores: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    teachers: tuple[tuple[str, str], ...]
    """Name and checksum."""
    caveat: str
    usage: tuple[str, ...]


def _agent(folder: RunFolder, result: Mapping[str, Any]) -> _About:
    card: Card = read_agent_card(folder.student)
    rules = result.get("protocol", card.protocol)
    scores, mean, std = result.get("scores", []), result.get("mean"), result.get("std")
    known: list[tuple[str, str]] = []
    if mean is not None:
        low, high = result.get("ci_low"), result.get("ci_high")
        known = [
            ("mean raw score of the student alone", f"{mean:,.1f}"),
            *([("95 % bootstrap interval over its games", f"{low:,.1f} to {high:,.1f}")] if low is not None else []),
            *([("standard deviation", f"{std:,.1f}")] if std is not None else []),
            ("games", str(len(scores))),
            ("actions", "the most probable" if result.get("greedy") else "sampled from the policy"),
        ]
        if result.get("human_normalised") is not None:
            known.append(("human-normalised", f"{100 * result['human_normalised']:.1f} %"))
        if "with_links" in result:
            known.append(
                ("with its teachers' links, which are not in the file", f"{result['with_links']['mean']:,.1f}")
            )
    kept = {name: value for name, value in rules.items() if name not in ("name", "game", "fingerprint")}
    return _About(
        title=f"{Game(card.game).title}, {card.method}",
        task="reinforcement-learning",
        tags=("kfrl", "atari", "reinforcement-learning", card.game, card.method),
        data=Game(card.game).title,
        metric=None if mean is None else ("mean_reward", f"{mean:.2f}" + ("" if std is None else f" +/- {std:.2f}")),
        scores=tuple(known),
        facts=(
            ("agent steps", f"{card.steps:,}"),
            ("seed", str(card.seed)),
            ("net", json.dumps(card.arch)),
            ("actions", ", ".join(card.actions)),
            ("protocol", f"{rules.get('name', '')}, fingerprint {rules.get('fingerprint', '')}"),
            ("its rules", ", ".join(f"{name} {value}" for name, value in kept.items())),
            ("commit of kfrl", card.commit),
        ),
        teachers=_teachers(card),
        caveat=card.caveat,
        usage=("kfrl teachers show hub:{repo}/" + STUDENT, "kfrl train --game NAME --teachers hub:{repo}/" + STUDENT),
    )


def _classifier(folder: RunFolder) -> _About:
    card = classifiers.read_card(folder.student)
    test = card.evaluation
    known: list[tuple[str, str]] = []
    if "accuracy_percent" in test:
        known = [
            ("right on the test images", f"{test['accuracy_percent']:.2f} %"),
            ("errors", f"{test['images'] - test['correct']:,} of {test['images']:,}"),
        ]
    return _About(
        title=f"{card.data}, {card.method}",
        task="image-classification",
        tags=("kfrl", "image-classification", card.method),
        data=card.data,
        metric=("accuracy", test["accuracy_percent"] / 100) if known else None,
        scores=tuple(known),
        facts=(
            ("net", f"{card.net}, input {'x'.join(map(str, card.input_shape))}"),
            ("classes", ", ".join(card.classes)),
            ("normalisation", f"mean {card.mean}, std {card.std}"),
            ("epochs", str(card.epochs)),
            ("seed", str(card.seed)),
            ("commit of kfrl", card.commit),
        ),
        teachers=_teachers(card),
        caveat="",
        usage=("kfrl supervised train --data NAME --teachers " + STUDENT,),
    )


def _teachers(card: Card | classifiers.Card) -> tuple[tuple[str, str], ...]:
    sums = card.teacher_sha256 or ("unknown",) * len(card.teachers)
    return tuple(zip(card.teachers, sums, strict=True))


def _text(about: _About, repo: str, checksum: str, license: str | None) -> str:
    """The text of the model card: metadata for the Hub, then Markdown."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if about.metric is not None:
        name, value = about.metric
        results = [
            EvalResult(
                task_type=about.task,
                dataset_type=about.data,
                dataset_name=about.data,
                metric_type=name,
                metric_value=value,
            )
        ]
    data = ModelCardData(
        library_name="kfrl",
        license=license,
        pipeline_tag=about.task,
        tags=list(about.tags),
        model_name=repo.partition("/")[2],
        eval_results=results or None,
    )
    lines = ["---", data.to_yaml(), "---", "", f"# {_plain(about.title)}", ""]
    lines += ["A student that [kfrl](https://pypi.org/project/kfrl) trained, alone: it needs no teacher.", ""]
    if about.caveat:
        lines += [f"**{_plain(about.caveat)}**", ""]
    lines += ["## Scores", ""]
    lines += _table(about.scores) if about.scores else ["It has not been scored.", ""]
    lines += ["## What it is", "", *_table((*about.facts, ("SHA-256 of " + STUDENT, checksum)))]
    lines += ["## Teachers", ""]
    lines += _table(about.teachers, ("teacher", "SHA-256 of its file")) if about.teachers else ["None.", ""]
    lines += ["## Use it", "", "```bash", *(line.format(repo=repo) for line in about.usage), "```", ""]
    return "\n".join(lines)


def _table(rows: tuple[tuple[str, str], ...], head: tuple[str, str] = ("", "")) -> list[str]:
    lines = [f"| {' | '.join(map(_plain, row))} |" for row in (head, *rows)]
    return [lines[0], "|---|---|", *lines[1:], ""]


def _plain(text: str) -> str:
    """Escape a text from files and names, so that it is no markup in the card."""
    marked = re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(text, quote=False))
    return " ".join(marked.split())


def _without_own_paths(folder: RunFolder) -> str:
    """The run's settings, with absolute paths shortened to the file's name."""
    settings = yaml.safe_load(folder.config.read_text())

    def shortened(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shortened(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shortened(item) for item in value]
        if isinstance(value, str):
            return ",".join(Path(part).name if part.startswith("/") else part for part in value.split(","))
        return value

    text: str = yaml.safe_dump({**shortened(settings), "run_dir": None}, sort_keys=False)
    return text


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """A context that converts the errors of the Hub's client to UserErrors."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled:
        raise UserError(f"{OFFLINE} HF_HUB_OFFLINE is set.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = next(iter(str(error).strip().splitlines()), "")
        if status == 401:
            raise UserError("The Hub refuses your token. Get another: hf auth login, or HF_TOKEN.") from None
        if status == 403:
            raise UserError(f"Your token may not write to {repo}: {reason} Make one with write access.") from None
        raise UserError(f"The Hub refuses: {reason}") from None
    except Exception as error:
        # Different releases of the client raise errors of three HTTP libraries.
        raise UserError(f"{OFFLINE} ({type(error).__name__}: {error})") from None


def check_access(repo: str) -> tuple[str, bool]:
    """Ask the Hub for the user's name, and whether the repository exists.

    Returns:
        The user's name, and whether the repository exists.

    Raises:
        UserError: there is no token, the Hub refuses it, the repository belongs to another user, or there is no
            network.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError(
            "The Hub accepts uploads only from known users, and there is no token: hf auth login, or HF_TOKEN."
        )
    api, owner = HfApi(), repo.partition("/")[0]
    with _told(repo):
        me = api.whoami()
        groups = [group["name"] for group in me.get("orgs", ())]
        if owner not in (me["name"], *groups):
            known = ", ".join((me["name"], *groups))
            raise UserError(f"You are {me['name']} on the Hub and may not push to {owner}. Push to one of: {known}.")
        return me["name"], api.repo_exists(repo)


def send(upload: Upload, *, private: bool) -> str:
    """Create the repository if it does not exist, and upload the files as one commit; returns its address.

    Raises:
        UserError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _told(upload.repo):
        api.create_repo(upload.repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in upload.files.items()]
        done = api.create_commit(upload.repo, operations, commit_message="Upload a student of kfrl")
    return str(done.commit_url)
