"""The games whose ROM ale-py ships, found under any of the names people write."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from kfrl.errors import unknown


@dataclass(frozen=True)
class Game:
    """One Atari game: `rom` as ale-py names its file, `title` as papers print it."""

    rom: str

    @property
    def title(self) -> str:
        """The PascalCase name of the Gymnasium ids, e.g. `MsPacman`."""
        return self.rom.title().replace("_", "")


# They have no single-player mode: ale-py ends the process, with exit code 0, when one is loaded.
_TWO_PLAYERS_ONLY = {"combat", "joust", "maze_craze", "warlords"}


@functools.cache
def all_games() -> tuple[Game, ...]:
    """Every game that ale-py can play, sorted by ROM name."""
    from ale_py import roms

    return tuple(Game(rom) for rom in sorted(set(roms.get_all_rom_ids()) - _TWO_PLAYERS_ONLY))


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def find_game(name: str) -> Game:
    """Return the game called `name`, whatever its case and punctuation.

    `MsPacman`, `ms_pacman`, `Ms. Pacman`, `ALE/MsPacman-v5` and `MsPacmanNoFrameskip-v4` are the same game.

    Raises:
        UserError: no such game; the message names the nearest one.
    """
    plain = re.sub(r"^ALE/", "", name.strip(), flags=re.IGNORECASE)
    plain = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", plain, flags=re.IGNORECASE)
    games = {_folded(game.rom): game for game in all_games()}
    try:
        return games[_folded(plain)]
    except KeyError:
        raise unknown("game", name, (game.title for game in all_games()), "`kfrl games` lists them all.") from None
