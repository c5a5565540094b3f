from __future__ import annotations

import ale_py
import gymnasium
import pytest

from envs.games import all_games, find_game
from kfrl.errors import UserError

SPELLINGS = (
    "{rom}",
    "{title}",
    "ALE/{title}-v5",
    "ale/{title}-v5",
    "{title}NoFrameskip-v4",
    "{title}Deterministic-v4",
    " {upper} ",
    "{spaced}",
)


def test_the_games_are_those_that_gymnasium_registers() -> None:
    gymnasium.register_envs(ale_py)
    ids = sorted(name for name in gymnasium.registry if name.startswith("ALE/") and name.endswith("-v5"))
    assert sorted(f"ALE/{game.title}-v5" for game in all_games()) == ids
    assert [game.rom for game in all_games()] == sorted(game.rom for game in all_games())


@pytest.mark.parametrize("name", ["Combat", "joust", "ALE/MazeCraze-v5", "warlords"])
def test_a_rom_for_two_players_only_is_refused_before_it_ends_the_process(name: str) -> None:
    with pytest.raises(UserError, match="Unknown game"):
        find_game(name)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_rom_resolves_from(spelling: str) -> None:
    for game in all_games():
        name = spelling.format(
            rom=game.rom,
            title=game.title,
            upper=game.rom.upper(),
            spaced=game.rom.replace("_", " ").title(),
        )
        assert find_game(name) == game


@pytest.mark.parametrize(
    ("name", "rom"),
    [
        ("Ms. Pac-Man", "ms_pacman"),
        ("Pacman", "pacman"),
        ("Q*bert", "qbert"),
        ("H.E.R.O.", "hero"),
        ("Up'n Down", "up_n_down"),
        ("River Raid", "riverraid"),
        ("James Bond", "jamesbond"),
    ],
)
def test_names_as_papers_print_them(name: str, rom: str) -> None:
    assert find_game(name).rom == rom


def test_an_unknown_name_gets_the_nearest_game() -> None:
    with pytest.raises(UserError, match=r"Unknown game 'Seaqest'\. Did you mean 'Seaquest'\?.*kfrl games"):
        find_game("Seaqest")


@pytest.mark.parametrize("name", ["", "   ", "-v5", "!!"])
def test_nothing_is_not_a_game(name: str) -> None:
    with pytest.raises(UserError, match="Unknown game"):
        find_game(name)
