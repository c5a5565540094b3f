"""The games of ale-py's ROMs and their flavours, found by any spelling of their name."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kfrl.errors import UserError, unknown


class Flavour(NamedTuple):
    """A variant of a ROM, by ALE's mode and difficulty."""

    mode: int
    difficulty: int

    def __str__(self) -> str:
        """The flavour as a part of a game's name: `m1d0`."""
        return f"m{self.mode}d{self.difficulty}"


@dataclass(frozen=True)
class Game:
    """An Atari game. `name` is the ROM's name, with the flavour if it is not the ROM's default: `freeway:m1d0`."""

    name: str

    @property
    def rom(self) -> str:
        """The name of its ROM in ale-py."""
        return self.name.partition(":")[0]

    @property
    def flavour(self) -> Flavour | None:
        """The flavour; None for the ROM's default."""
        numbers = re.findall(r"\d+", self.name.partition(":")[2])
        return Flavour(*map(int, numbers)) if numbers else None

    @property
    def flavour_in_force(self) -> Flavour:
        """The flavour, or the ROM's default."""
        return self.flavour or flavours_of(self.rom).default

    @property
    def title(self) -> str:
        """The name as in papers and Gymnasium ids, with the flavour if any: `MsPacman`, `Freeway:m1d0`."""
        rom, *flavour = self.name.split(":")
        return ":".join([rom.title().replace("_", ""), *flavour])

    @property
    def file_name(self) -> str:
        """The name without a colon, which some file systems do not allow: `freeway-m1d0`."""
        return self.name.replace(":", "-")


# Games without a single-player mode: ale-py ends the process with exit code 0 when it loads one.
_TWO_PLAYERS_ONLY = {"combat", "joust", "maze_craze", "warlords"}


@functools.cache
def all_games() -> tuple[Game, ...]:
    """Every game that ale-py can play, sorted by ROM name."""
    from ale_py import roms

    return tuple(Game(rom) for rom in sorted(set(roms.get_all_rom_ids()) - _TWO_PLAYERS_ONLY))


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


@dataclass(frozen=True)
class Flavours:
    """The variants of a ROM."""

    modes: tuple[int, ...]
    difficulties: tuple[int, ...]
    default: Flavour

    def __iter__(self) -> Iterator[Flavour]:
        """Every mode at every difficulty."""
        return (Flavour(mode, difficulty) for mode in self.modes for difficulty in self.difficulties)

    def __str__(self) -> str:
        """The variants as text."""
        modes, difficulties = (", ".join(map(str, numbers)) for numbers in (self.modes, self.difficulties))
        return f"modes {modes} and difficulties {difficulties}, by default {self.default}"


@functools.cache
def flavours_of(rom: str) -> Flavours:
    """Read a ROM's modes and difficulties, whose numbers have gaps and whose default is not always 0."""
    import ale_py
    from ale_py import roms

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    console = ale_py.ALEInterface()
    path = roms.get_rom_path(rom)
    assert path is not None, "a game's ROM ships with ale-py"
    console.loadROM(path)
    state = console.cloneState()
    return Flavours(
        tuple(console.getAvailableModes()),
        tuple(console.getAvailableDifficulties()),
        Flavour(state.getCurrentMode(), state.getDifficulty()),
    )


def in_flavour(game: Game, flavour: str) -> Game:
    """Return a game's ROM in another flavour: `m1d0`; `m1` or `d1` use the default of the other number.

    Raises:
        UserError: the ROM has no such flavour; the message lists its flavours.
    """
    known, title = flavours_of(game.rom), Game(game.rom).title
    found = re.fullmatch(r"(?:m(\d+))?(?:d(\d+))?", flavour.strip().casefold())
    if found is None or not any(found.groups()):
        raise UserError(
            f"{flavour!r} is not a flavour of {title}. Expected e.g. m1d0, for mode 1 and difficulty 0; "
            f"{title} has {known}."
        )
    chosen = Flavour(
        *(default if n is None else int(n) for n, default in zip(found.groups(), known.default, strict=True))
    )
    if chosen not in set(known):
        raise UserError(f"{title} has no flavour {flavour}: it has {known}.")
    return Game(game.rom if chosen == known.default else f"{game.rom}:{chosen}")


def find_game(name: str) -> Game:
    """Return the game with this name; case and punctuation are ignored.

    `MsPacman`, `ms_pacman`, `Ms. Pacman`, `ALE/MsPacman-v5` and `MsPacmanNoFrameskip-v4` are the same game;
    `MsPacman:m1d0` is its mode 1 at difficulty 0, and `Freeway:m0d0`, the default, is `Freeway`.

    Raises:
        UserError: there is no such game or flavour; the message names the nearest game, or the flavours.
    """
    name, colon, flavour = name.partition(":")
    if colon:
        return in_flavour(find_game(name), flavour)
    plain = re.sub(r"^ALE/", "", name.strip(), flags=re.IGNORECASE)
    plain = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", plain, flags=re.IGNORECASE)
    games = {_folded(game.rom): game for game in all_games()}
    try:
        return games[_folded(plain)]
    except KeyError:
        raise unknown("game", name, (game.title for game in all_games()), "`kfrl games` lists them all.") from None
