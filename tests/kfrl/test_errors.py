import errno
import os

import pytest

import kfrl.cli.main
from kfrl.cli.main import main
from kfrl.errors import UserError, shortened, unknown, user_path


@pytest.mark.parametrize("text", ["~nobody-of-that-name/x.zip", "x" * 300])
def test_what_no_system_has_as_a_path(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="cannot be a path"):
        user_path(text)
    for command in (
        ["train", "--game", "Pong", "--teachers", f"{text}@Pong"],
        ["supervised", "train", "--data", text],
        ["supervised", "train", "--data", "digits", "--teachers", text],
    ):
        assert main(command) == 2
        assert "cannot be a path" in capsys.readouterr().err


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(user_path("~/a.zip")) == "/somewhere/a.zip"


def test_a_full_disk_is_a_sentence_wherever_it_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(arguments: object, commands: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.csv")

    monkeypatch.setattr(kfrl.cli.main, "run_command", fill)
    assert main(["games"]) == 2
    assert capsys.readouterr().err == "kfrl: No space left on device: runs/x/metrics.csv.\n"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kfrl {kfrl.__version__}\n"


def test_an_unknown_name_comes_with_the_nearest_the_valid_ones_and_a_hint() -> None:
    error = unknown("game", "pung", ["pong", "alien"], "Look again.")
    assert isinstance(error, UserError)
    assert str(error) == "Unknown game 'pung'. Did you mean 'pong'? Valid: alien, pong. Look again."


def test_case_does_not_matter_for_the_nearest() -> None:
    assert "Did you mean 'MsPacman'?" in str(unknown("game", "MSPACMEN", ["MsPacman", "Alien"]))


def test_nothing_near_means_no_guess() -> None:
    assert str(unknown("game", "xyz", ["pong"])) == "Unknown game 'xyz'. Valid: pong."
    assert str(unknown("teacher", "pong", [])) == "Unknown teacher 'pong'. Valid: none."


def test_a_long_list_is_left_out() -> None:
    assert "Valid" not in str(unknown("game", "x", (f"game{index}" for index in range(31))))


def test_a_long_list_of_names_is_cut() -> None:
    assert shortened(["a", "b", "c"], 2) == "a, b, ..."
    assert shortened(["a", "b"], 2) == "a, b"
