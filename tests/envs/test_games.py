from __future__ import annotations

import ale_py
import gymnasium
import pytest

from envs.games import Flavour, Game, all_games, find_game, flavours_of
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


@pytest.mark.parametrize(
    ("written", "name", "title"),
    [
        ("Freeway:m1d0", "freeway:m1d0", "Freeway:m1d0"),
        ("ALE/Freeway-v5:M1", "freeway:m1d0", "Freeway:m1d0"),
        ("freeway: d1 ", "freeway:m0d1", "Freeway:m0d1"),
        ("freeway:m0d0", "freeway", "Freeway"),
        ("Demon Attack:m1", "demon_attack", "DemonAttack"),
        ("demon_attack:m3", "demon_attack:m3d0", "DemonAttack:m3d0"),
    ],
)
def test_a_flavour_has_one_name_and_the_default_is_the_game(written: str, name: str, title: str) -> None:
    game = find_game(written)
    assert (game.name, game.title, find_game(game.title)) == (name, title, game)
    assert game.file_name == name.replace(":", "-")
    assert game.rom == name.split(":")[0]


def test_a_roms_flavours() -> None:
    assert Game("freeway").flavour is None
    assert Game("freeway:m1d0").flavour == Flavour(1, 0)
    assert flavours_of("demon_attack").default == Flavour(1, 0) == Game("demon_attack").flavour_in_force
    assert [str(flavour) for flavour in flavours_of("pong")] == [f"m{m}d{d}" for m in (0, 1) for d in (0, 1, 2, 3)]


@pytest.mark.parametrize("flavour", ["m8d0", "m0d2", "m99"])
def test_a_flavour_that_the_rom_does_not_have_lists_those_it_has(flavour: str) -> None:
    with pytest.raises(UserError, match=f"no flavour {flavour}: it has modes 0, 1, .*, 7 and difficulties 0, 1, by"):
        find_game(f"Freeway:{flavour}")


@pytest.mark.parametrize("flavour", ["", "hard", "1", "m1d0x", "d0m1"])
def test_what_is_no_flavour_is_refused_with_the_form_of_one(flavour: str) -> None:
    with pytest.raises(UserError, match=r"not a flavour of Freeway\. Expected e\.g\. m1d0.*modes 0, 1"):
        find_game(f"Freeway:{flavour}")
