from collections import Counter

from agents.scores.quoted import quoted_scores
from envs.games import all_games
from envs.protocols import get_protocol

PAPER = "Knowledge Flow (ICLR 2019), Table "


def scores(table: str, rom: str) -> list[tuple[str, str, float, bool]]:
    return [
        (entry.method, entry.teachers, entry.score, entry.approximate)
        for entry in quoted_scores()
        if (entry.source, entry.rom) == (PAPER + table, rom)
    ]


def test_every_cell_of_the_papers_tables_is_there() -> None:
    count = Counter(entry.source for entry in quoted_scores())
    assert count[PAPER + "1"] == 7 * 9 - 2  # two cells say n/a
    assert count[PAPER + "2"] == 6 * 5
    assert count[PAPER + "7"] == 3 * 2


def test_rows_are_as_printed() -> None:
    assert scores("1", "krull") == [
        ("Knowledge Flow", "Seaquest", 8193.0, False),
        ("PathNet", "Seaquest", 7800.0, True),
        ("Knowledge Flow", "Riverraid", 6890.0, False),
        ("PathNet", "Riverraid", 7500.0, True),
        ("Knowledge Flow", "Seaquest, Riverraid", 10000.0, False),
        ("progressive nets", "Seaquest, Riverraid", 9954.0, True),
        ("A3C", "", 8067.0, False),
        ("PPO", "", 7942.0, False),
        ("ACKTR", "", 9689.0, False),
    ]
    assert [score for _, _, score, _ in scores("2", "seaquest")] == [1873.0, 32103.0, 1590.0, 1670.0, 2300.0]
    assert scores("7", "jamesbond") == [
        ("Distral, task 1 of 3", "Seaquest, Riverraid", 550.0, False),
        ("Knowledge Flow", "Seaquest, Riverraid", 1245.0, False),
    ]


def test_what_was_read_off_plots_is_marked_and_nothing_else() -> None:
    marked = Counter((entry.source, entry.method) for entry in quoted_scores() if entry.approximate)
    assert marked == {(PAPER + "1", "PathNet"): 14, (PAPER + "1", "progressive nets"): 7}


def test_the_frame_cap_is_that_of_the_source_or_not_known() -> None:
    caps = {entry.max_frames for entry in quoted_scores() if not entry.source.startswith(PAPER)}
    assert caps == {get_protocol("paper", "alien").max_frames}
    own = {entry.max_frames for entry in quoted_scores() if "Knowledge Flow" in entry.method}
    assert own == {get_protocol("nature", "alien").max_frames}
    others = {entry.method for entry in quoted_scores() if entry.max_frames is None}
    assert others == {"A3C", "PPO", "ACKTR", "PathNet", "progressive nets"}


def test_games_are_ale_pys_and_every_row_has_a_source() -> None:
    assert {entry.rom for entry in quoted_scores()} <= {game.rom for game in all_games()}
    assert all(entry.source and entry.protocol for entry in quoted_scores())
