from __future__ import annotations

import subprocess
import sys

import pytest

from envs.games import all_games
from kfrl.cli.games import main
from kfrl.errors import UserError


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in text.splitlines() if "│" in line]


def test_all_games_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = rows(capsys.readouterr().out)
    assert [row[1] for row in listed] == [game.rom for game in all_games()]
    assert sum("yes" in row for row in listed) == 57


@pytest.mark.parametrize("name", ["seaq", "SEAQUEST", "Sea Quest"])
def test_a_filter_is_part_of_a_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    assert rows(capsys.readouterr().out) == [
        ["Seaquest", "seaquest", "yes", "68.4", "42,054.7", "modes 0 and difficulties 0, 1, by default m0d0"]
    ]


def test_a_flavour_may_be_named_and_has_no_published_scores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Seaquest:d1"]) == 0
    flavours = "modes 0 and difficulties 0, 1, by default m0d0"
    assert rows(capsys.readouterr().out) == [["Seaquest:m0d1", "seaquest", "", "", "", flavours]]
    with pytest.raises(UserError, match="Seaquest has no flavour m7: it has modes 0 and"):
        main(["seaquest:m7"])


def test_a_game_outside_atari_57_shows_no_scores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ms. pac-man"]) == 0
    assert main(["pacman"]) == 0
    shown = rows(capsys.readouterr().out)
    assert [row[1] for row in shown] == ["ms_pacman", "ms_pacman", "pacman"]
    assert shown[2][:2] == ["Pacman", "pacman"]
    assert not any(shown[2][2:5])


def test_a_filter_without_a_game_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'Seaquest'"):
        main(["seaqest"])


def test_help_needs_neither_torch_nor_the_emulator() -> None:
    code = """
import sys
from kfrl.cli.games import main
try:
    main(["--help"])
except SystemExit as stop:
    sys.exit(stop.code or any(name in sys.modules for name in ("torch", "ale_py", "numpy")))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "kfrl games" in finished.stdout
