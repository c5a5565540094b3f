"""Finding a teacher by what a user types: a file of any program, a run's folder, a game, an agent of the zoo."""

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
"""What means every agent of the zoo."""
SUFFIXES = (".safetensors", ".zip", ".pt", ".pth", ".bin", ".cleanrl_model", *TABLE_SUFFIXES)
"""A reference with such an ending means a file, not a game."""

Identify = Callable[[str, int | tuple[str, ...]], tuple[str, tuple[str, ...], dict[str, Any]]]
"""A game as people write it, and how many actions an agent has, or which: the ROM, the actions by name in the order of
the logits, and the rules to play it by. The core knows no games: `envs.atari.identify` does."""


@dataclass(frozen=True)
class Reference:
    """What a user types for a teacher that is a file: `[FORMAT:][hub:]PLACE[@GAME]`."""

    place: str
    """A path, or `hub:owner/repo[@revision]/file`."""
    kind: str = ""
    """A format, to accept only this one."""
    game: str = ""
    """For files that do not say it."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Take a reference apart; a file that is called exactly like it goes first."""
        if user_path(text).exists():
            return cls(text)
        found = re.fullmatch(rf"(?:({'|'.join(FORMATS)}):)?(.*?)(?:@([^@/]+))?", text, re.DOTALL)
        kind, place, game = found.groups(default="") if found else ("", text, "")
        return cls(place, kind, game)

    def __str__(self) -> str:
        """As a user would type it."""
        return (f"{self.kind}:" if self.kind else "") + self.place + (f"@{self.game}" if self.game else "")

    @property
    def on_hub(self) -> bool:
        """Whether the file is on the Hugging Face Hub."""
        return self.place.startswith(HUB_PREFIX)

    def file(self) -> tuple[Path, Reference] | None:
        """The file that is meant, fetched if it is on the Hub; None if it is no file but a name or a folder.

        Returns:
            The file, and the reference that means it from everywhere and for ever.

        Raises:
            UserError: a file is meant, and it is not there.
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
    """An agent that a name can mean."""

    reference: str
    """What `--teachers` takes to mean exactly this file."""
    path: Path
    card: Card


def list_teachers(runs: Path) -> list[Entry]:
    """The user's own scored runs below `runs`, then the zoo, then runs that nobody has scored yet.

    Runs of one game under the same rules stand together, the best first. Files that cannot be read are left out.
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
    """What must agree before scores of a game are ranked: its rules' fingerprint, and how actions were chosen."""
    protocol = card.evaluation.get("protocol", card.protocol)
    return str(protocol.get("fingerprint", "")), bool(card.evaluation.get("greedy", False))


def _check_one_ranking(reference: str, own: Sequence[Entry]) -> None:
    """Refuse to call one run the best where their scores are of different rules."""
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
            f"Which of your runs of {reference}? Their scores are of different rules of play, so none is the best: "
            f"{found}. Give the folder of one."
        )


def _entry(path: Path, reference: str) -> Entry | None:
    try:
        return Entry(reference, path, read_card(path))
    except UserError:
        return None


def find_teacher(reference: str, runs: Path) -> Entry:
    """Return what `reference` means: a file, a run's folder, `zoo:NAME`, or a game.

    A game is looked up among the user's own runs first (the best evaluated one), then in the zoo.

    Raises:
        UserError: nothing of that name; the message lists what there is and names the nearest. Or runs of the game
            whose scores are of different rules, so that none is the best.
    """
    path = user_path(reference)
    if path.is_dir():
        folder = RunFolder(path)
        if folder.config.is_file() and folder.checkpoints.is_dir() and not folder.student.exists():
            raise UserError(
                f"The run {reference} has no student yet: it has made no step in its own game. Let it go on: "
                f"kfrl train --resume {reference}"
            )
        path = folder.student
        if not path.exists():
            raise UserError(
                f"{reference} is a folder without a {STUDENT_FILE}: not a run of kfrl that has saved anything."
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
        "Give a game from this list, or the path of an agent file; `kfrl teachers list` shows them all.",
    )


def load_teacher(reference: str | Reference, runs: Path, identify: Identify) -> tuple[Teacher, str]:
    """Load an agent of any program as a frozen net on the CPU.

    Args:
        reference: What `find_teacher` takes, or a file: see `Reference`.
        runs: Where the user's runs are.
        identify: See `Identify`.

    Returns:
        The agent, called after its file, and the exact reference to find the same file again.

    Raises:
        UserError: nothing of that name, an unusable file, or one whose game nobody says.
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
    """Load every teacher, `all` being the whole zoo; of two for the same game the second is called `<game>-2`.

    Returns:
        The teachers, and the exact references to find the same files again.
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
    """The references, the zoo's agents in the place of `all`."""
    for reference in references:
        if reference == WHOLE_ZOO and not Path(reference).exists():
            yield from (ZOO_PREFIX + path.stem for path in sorted(ZOO.glob("*.safetensors")))
        else:
            yield reference


def _card(agent: ForeignAgent, asked: Reference, identify: Identify) -> Card:
    game = asked.game or agent.game
    if not game:
        raise UserError(
            f"Which game does {asked.place} play? Its file does not say: give {asked}@GAME, e.g. {asked}@Breakout."
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
    """A game's name with the whole flavour, where it has a part of one (`freeway:m1`) or the default."""
    return find_game(name).name if ":" in name and not name.startswith(ZOO_PREFIX) else name


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
