from kfrl.errors import UserError, unknown


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
