"""Finding a teacher by its reference: a file of any program, a run's folder, a game, or an agent of the zoo."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.teachers.foreign import FORMATS, TABLE_SUFFIXES, ForeignAgent, read_foreign
from agents.teachers.formats import Card, Teacher, is_native, load_agent, read_card
from agents.teachers.hub import download
from envs.games import find_game
from kfrl.errors import UserError, missing_file, unknown, user_path
from kfrl.runs.folder import STUDENT_FILE, RunFolder

ZOO = Path(__file__).parent / "zoo"
ZOO_PREFIX = "zoo:"
HUB_PREFIX = "hub:"
WHOLE_ZOO = "all"
"""The reference for all agents of the zoo."""
SUFFIXES = (".safetensors", ".zip", ".pt", ".pth", ".bin", ".cleanrl_model", *TABLE_SUFFIXES)
"""Endings of references to files."""

Identify = Callable[[str, int | tuple[str, ...]], tuple[str, tuple[str, ...], dict[str, Any]]]
"""(game in any spelling, number or names of an agent's actions) -> (ROM, action names in the order of the logits,
protocol). `envs.atari.identify` implements it."""


@dataclass(frozen=True)
class Reference:
    """A reference to a teacher's file: `[FORMAT:][hub:]PLACE[@GAME]`."""

    place: str
    """A path, or `hub:owner/repo[@revision]/file`."""
    kind: str = ""
    """The only accepted format; empty: any."""
    game: str = ""
    """The game, for files that do not name it."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference; if a file with exactly this name exists, the reference is its path."""
        if user_path(text).exists():
            return cls(text)
        found = re.fullmatch(rf"(?:({'|'.join(FORMATS)}):)?(.*?)(?:@([^@/]+))?", text, re.DOTALL)
        kind, place, game = found.groups(default="") if found else ("", text, "")
        return cls(place, kind, game)

    def __str__(self) -> str:
        """The reference as text."""
        return (f"{self.kind}:" if self.kind else "") + self.place + (f"@{self.game}" if self.game else "")

    @property
    def on_hub(self) -> bool:
        """Whether the file is on the Hugging Face Hub."""
        return self.place.startswith(HUB_PREFIX)

    def file(self) -> tuple[Path, Reference] | None:
        """The file, downloaded if it is on the Hub; None if the reference is a name or a folder.

        Returns:
            The file, and an exact reference to it, valid in any folder and pinned to its revision.

        Raises:
            UserError: the file does not exist.
        """
        if self.on_hub:
            path, pinned = download(self.place.removeprefix(HUB_PREFIX))
            return path, replace(self, place=HUB_PREFIX + pinned)
        path = user_path(self.place)
        if path.is_file():
            return path, replace(self, place=str(path.absolute()))
        if self.kind or path.suffix in SUFFIXES:
            raise missing_file(path)
        return None


@dataclass(frozen=True)
class Entry:
    """An agent that can be found by its reference."""

    reference: str
    """The exact reference to this file for `--teachers`."""
    path: Path
    card: Card


def list_teachers(runs: Path) -> list[Entry]:
    """The user's scored runs below `runs`, then the zoo, then the runs without a score.

    Runs of the same game and rules are consecutive, the best first. Files that cannot be read are left out.
    """
    own = [_entry(path, str(path)) for path in sorted(runs.glob(f"*/*/*/{STUDENT_FILE}"))]
    zoo = [_entry(path, ZOO_PREFIX + path.stem) for path in sorted(ZOO.glob("*.safetensors"))]
    readable = sorted(
        (entry for entry in own if entry is not None),
        key=lambda entry: (entry.card.game, _rules(entry.card), -(entry.card.mean_score or 0.0)),
    )
    scored = [entry for entry in readable if entry.card.mean_score is not None]
    unscored = [entry for entry in readable if entry.card.mean_score is None]
    return [*scored, *(entry for entry in zoo if entry is not None), *unscored]


def _rules(card: Card) -> tuple[str, bool]:
    """The conditions for ranking scores of a game: the fingerprint of the rules, and whether play was greedy."""
    return str(card.scored_under.get("fingerprint", "")), bool(card.evaluation.get("greedy", False))


def _check_one_ranking(reference: str, own: Sequence[Entry]) -> None:
    """Refuse to rank runs whose scores are from different rules."""
    best: dict[tuple[str, bool], Entry] = {}
    for entry in own:
        best.setdefault(_rules(entry.card), entry)
    if len(best) > 1:
        found = "; ".join(
            f"{entry.path.parent}: {entry.card.mean_score:,.1f} under {entry.card.protocol.get('name', 'other rules')}"
            + (", most probable actions" if greedy else "")
            for (_, greedy), entry in best.items()
        )
        raise UserError(
            f"Several of your runs of {reference} have scores under different rules of play, so none is the best: "
            f"{found}. Give the folder of one."
        )


def _entry(path: Path, reference: str) -> Entry | None:
    try:
        return Entry(reference, path, read_card(path))
    except UserError:
        return None


def find_teacher(reference: str, runs: Path) -> Entry:
    """Find the agent of a reference: a file, a run's folder, `zoo:NAME`, or a game.

    A game is looked up first among the user's runs (the one with the best score), then in the zoo.

    Raises:
        UserError: there is no such agent (the message lists the valid names and the nearest), or the user's runs of
            the game have scores under different rules.
    """
    path = user_path(reference)
    if path.is_dir():
        folder = RunFolder(path)
        if folder.config.is_file() and folder.checkpoints.is_dir() and not folder.student.exists():
            raise UserError(
                f"The run {reference} has no student yet: it has made no step in its own game. Continue the run: "
                f"kfrl train --resume {reference}"
            )
        path = folder.student
        if not path.exists():
            raise UserError(
                f"{reference} is a folder without a {STUDENT_FILE}: it is not a run of kfrl with a saved student."
            )
    if path.is_file() or path.suffix == ".safetensors" or "/" in reference:
        if not path.is_file():
            raise missing_file(path)
        return Entry(str(path.resolve()), path, read_card(path))
    entries, game = list_teachers(runs), _in_full(reference)
    own = [entry for entry in entries if not entry.reference.startswith(ZOO_PREFIX)]
    played = [entry for entry in own if _folded(game) == _folded(entry.card.game)]
    _check_one_ranking(reference, [entry for entry in played if entry.card.mean_score is not None])
    for entry in entries:
        if reference == entry.reference or _folded(game) == _folded(entry.card.game):
            return entry
    raise unknown(
        "teacher",
        reference,
        {entry.card.game for entry in entries},
        "Give a game from this list, or the path of an agent file; `kfrl teachers list` lists all agents.",
    )


def load_teacher(reference: str | Reference, runs: Path, identify: Identify) -> tuple[Teacher, str]:
    """Load an agent of any program as a frozen net on the CPU.

    Args:
        reference: A reference as for `find_teacher`, or to a file: see `Reference`.
        runs: The folder of the user's runs.
        identify: See `Identify`.

    Returns:
        The agent, named after its file, and the exact reference to the file.

    Raises:
        UserError: there is no such agent, its file cannot be used, or its game is not known.
    """
    asked = Reference.parse(reference) if isinstance(reference, str) else reference
    file = asked.file()
    if file is None:
        entry = find_teacher(str(asked), runs)
        in_zoo = entry.reference.startswith(ZOO_PREFIX)
        return load_agent(entry.path), entry.reference if in_zoo else str(entry.path.resolve())
    path, exact = file
    if is_native(path):
        loaded = load_agent(path)
        if asked.game and _folded(_in_full(asked.game)) != _folded(loaded.card.game):
            raise UserError(f"{asked.place} plays {loaded.card.game}, not {asked.game}.")
        return loaded, str(replace(exact, game=""))
    agent = read_foreign(path, asked.kind or None)
    card = _card(agent, asked, identify)
    net = agent.net.eval().requires_grad_(False)
    return Teacher(path.stem, net, card, path, agent.weights, agent.loaded), str(replace(exact, game=card.game))


def load_teachers(
    references: Iterable[str], runs: Path, identify: Identify
) -> tuple[tuple[Teacher, ...], tuple[str, ...]]:
    """Load teachers; `all` is the whole zoo. A second teacher of the same game is named `<game>-2`.

    Returns:
        The teachers, and the exact references to their files.
    """
    teachers: list[Teacher] = []
    exact = []
    for reference in _expanded(references):
        loaded, same_again = load_teacher(reference, runs, identify)
        same = sum(teacher.card.game == loaded.card.game for teacher in teachers)
        name = loaded.card.game + (f"-{same + 1}" if same else "")
        teachers.append(replace(loaded, name=name))
        exact.append(same_again)
    return tuple(teachers), tuple(exact)


def _expanded(references: Iterable[str]) -> Iterator[str]:
    """The references, with `all` replaced by the zoo's agents."""
    for reference in references:
        if reference == WHOLE_ZOO and not Path(reference).exists():
            yield from (ZOO_PREFIX + path.stem for path in sorted(ZOO.glob("*.safetensors")))
        else:
            yield reference


def _card(agent: ForeignAgent, asked: Reference, identify: Identify) -> Card:
    game = asked.game or agent.game
    if not game:
        raise UserError(
            f"The file {asked.place} does not name the game of its agent. Give {asked}@GAME, e.g. {asked}@Breakout."
        )
    rom, actions, protocol = identify(game, agent.actions or agent.net.policy.out_features)
    return Card(
        game=rom,
        actions=actions,
        arch=agent.net.arch,
        method=agent.method,
        steps=agent.steps,
        seed=agent.seed,
        protocol=protocol,
        evaluation={} if agent.score is None else {"mean": agent.score},
        preprocessing=agent.preprocessing,
        notes=agent.notes,
    )


def _in_full(name: str) -> str:
    """A game's name with its complete flavour, if it has a part of one (`freeway:m1`) or the default."""
    return find_game(name).name if ":" in name and not name.startswith(ZOO_PREFIX) else name


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
