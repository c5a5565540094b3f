from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kfrl.errors import UserError
from kfrl.nets.atari import AtariNet
from kfrl.teachers import store
from kfrl.teachers.formats import Card, save_agent
from kfrl.teachers.store import find_teacher, list_teachers, load_teachers

Net = Callable[[int], AtariNet]
Put = Callable[..., Path]
ACTIONS = ("NOOP", "FIRE", "RIGHT", "LEFT")


@pytest.fixture
def put(small_net: Net) -> Put:
    def save(path: Path, game: str, mean: float | None = None, steps: int = 0) -> Path:
        net = small_net(4)
        evaluation = {} if mean is None else {"mean": mean}
        save_agent(path, net, Card(game, ACTIONS, net.arch, steps=steps, evaluation=evaluation))
        return path

    return save


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Put) -> Path:
    """Own runs of Breakout and Pong, and a zoo with Breakout, Ms. Pacman and Seaquest."""
    monkeypatch.setattr(store, "ZOO", tmp_path / "zoo")
    put(tmp_path / "zoo" / "breakout.safetensors", "breakout", 400.0)
    put(tmp_path / "zoo" / "pacman-v2.safetensors", "ms_pacman", 50.0)
    put(tmp_path / "zoo" / "seaquest.safetensors", "seaquest", 1700.0)
    runs = tmp_path / "runs"
    for name, game, mean in (
        ("none-s1", "breakout", 3.0),
        ("none-s2", "breakout", 30.0),
        ("none-s3", "breakout", None),
        ("none-s4", "breakout", -7.0),
        ("none-s5", "pong", None),
    ):
        put(runs / game / "a3c" / name / "student.safetensors", game, mean)
    return runs


def test_own_runs_come_first_the_best_of_them_at_the_top(runs: Path) -> None:
    listed = [(entry.path.parent.name, entry.card.game, entry.card.mean_score) for entry in list_teachers(runs)]
    assert listed == [
        ("none-s2", "breakout", 30.0),
        ("none-s1", "breakout", 3.0),
        ("none-s4", "breakout", -7.0),
        ("none-s3", "breakout", None),
        ("none-s5", "pong", None),
        ("zoo", "breakout", 400.0),
        ("zoo", "ms_pacman", 50.0),
        ("zoo", "seaquest", 1700.0),
    ]


def test_files_that_cannot_be_read_are_left_out_of_the_list(runs: Path) -> None:
    (runs / "pong" / "a3c" / "none-s5" / "student.safetensors").write_bytes(b"\x80\x04 not an agent")
    assert [entry.card.game for entry in list_teachers(runs)] == [*["breakout"] * 5, "ms_pacman", "seaquest"]


def test_without_runs_there_is_the_zoo(runs: Path, tmp_path: Path) -> None:
    listed = list_teachers(tmp_path / "nowhere")
    assert [entry.reference for entry in listed] == ["zoo:breakout", "zoo:pacman-v2", "zoo:seaquest"]


@pytest.mark.parametrize("reference", ["breakout", "Breakout", "BREAK OUT"])
def test_a_game_is_the_best_own_run(runs: Path, reference: str) -> None:
    assert find_teacher(reference, runs).path.parent.name == "none-s2"


def test_an_own_run_without_a_score_goes_before_the_zoo(runs: Path, put: Put) -> None:
    put(runs / "seaquest" / "a3c" / "none-s1" / "student.safetensors", "seaquest")
    assert find_teacher("seaquest", runs).path.parent.name == "none-s1"


@pytest.mark.parametrize("reference", ["ms_pacman", "MsPacman", "Ms. Pacman", "ms pacman"])
def test_a_game_without_runs_is_in_the_zoo_under_any_spelling(runs: Path, reference: str) -> None:
    assert find_teacher(reference, runs).reference == "zoo:pacman-v2"


def test_the_zoo_can_be_named(runs: Path) -> None:
    entry = find_teacher("zoo:breakout", runs)
    assert (entry.path.parent.name, entry.card.mean_score) == ("zoo", 400.0)


def test_a_path_is_that_file_whatever_its_name(runs: Path, put: Put, tmp_path: Path) -> None:
    path = put(tmp_path / "elsewhere" / "agent.safetensors", "pong", steps=5)
    assert find_teacher(str(path), runs).card.steps == 5
    assert find_teacher(str(path), runs).reference == str(path)


def test_a_file_goes_before_a_game_of_that_name(
    runs: Path, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "breakout", "pong")
    monkeypatch.chdir(tmp_path)
    entry = find_teacher("breakout", runs)
    assert (entry.card.game, entry.reference) == ("pong", str(tmp_path / "breakout"))


def test_the_folder_of_a_run_is_its_student(runs: Path) -> None:
    folder = runs / "breakout" / "a3c" / "none-s1"
    assert find_teacher(str(folder), runs).card.mean_score == 3.0


def test_another_folder_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="a folder without a student"):
        find_teacher(str(runs), runs)


@pytest.mark.parametrize("reference", ["nowhere/agent", "agent.safetensors", "/no/such/file.safetensors"])
def test_a_path_to_nothing_is_refused(runs: Path, reference: str) -> None:
    with pytest.raises(UserError, match=f"There is no file {reference}"):
        find_teacher(reference, runs)


def test_an_unknown_name_lists_what_there_is_and_the_nearest(runs: Path) -> None:
    with pytest.raises(UserError) as error:
        find_teacher("seaqest", runs)
    message = str(error.value)
    assert "Unknown teacher 'seaqest'. Did you mean 'seaquest'?" in message
    assert "Valid: breakout, ms_pacman, pong, seaquest." in message
    assert "kfrl teachers list" in message


def test_an_unknown_name_of_the_zoo_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="Unknown teacher 'zoo:alien'"):
        find_teacher("zoo:alien", runs)


def test_teachers_are_called_after_their_games(runs: Path, put: Put, tmp_path: Path) -> None:
    path = str(put(tmp_path / "third.safetensors", "breakout"))
    references = ["breakout", "seaquest", "zoo:breakout", path, "pong"]
    teachers, exact = load_teachers(references, runs)
    assert [teacher.name for teacher in teachers] == ["breakout", "seaquest", "breakout-2", "breakout-3", "pong"]
    assert exact[1:4] == ("zoo:seaquest", "zoo:breakout", path)
    again, same = load_teachers(exact, runs)
    assert same == exact
    for before, after in zip(teachers, again, strict=True):
        assert before.path.samefile(after.path)
        assert all(map(torch.equal, before.net.parameters(), after.net.parameters()))


def test_exact_references_do_not_depend_on_the_working_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (teacher,), exact = load_teachers(["breakout"], Path("runs"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    (again,), _ = load_teachers(exact, Path("runs"))
    assert again.path.parent.name == teacher.path.parent.name == "none-s2"


def test_exact_references_stay_with_the_file_when_a_better_one_comes(runs: Path, put: Put) -> None:
    _, exact = load_teachers(["breakout"], runs)
    put(runs / "breakout" / "a3c" / "none-s9" / "student.safetensors", "breakout", 999.0)
    (again,), _ = load_teachers(exact, runs)
    assert again.path.parent.name == "none-s2"


def test_every_agent_that_ships_with_kfrl_loads(tmp_path: Path) -> None:
    entries = list_teachers(tmp_path)
    assert len(entries) == len(list(store.ZOO.iterdir()))
    for entry in entries:
        (teacher,), _ = load_teachers([entry.reference], tmp_path)
        logits, _ = teacher.net(torch.zeros(1, 4, 84, 84, dtype=torch.uint8))
        assert logits.shape == (1, len(teacher.card.actions))
        assert teacher.card.evaluation["mean"] == entry.card.mean_score
