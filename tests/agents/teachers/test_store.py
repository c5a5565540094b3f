from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.teachers import store
from agents.teachers.formats import Card, save_agent
from agents.teachers.store import Reference, find_teacher, list_teachers, load_teacher, load_teachers
from envs.atari import ALL_ACTIONS, identify
from envs.protocols import get_protocol
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet

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
        ("zoo", "breakout", 400.0),
        ("zoo", "ms_pacman", 50.0),
        ("zoo", "seaquest", 1700.0),
        ("none-s3", "breakout", None),
        ("none-s5", "pong", None),
    ]


def test_files_that_cannot_be_read_are_left_out_of_the_list(runs: Path) -> None:
    (runs / "pong" / "a3c" / "none-s5" / "student.safetensors").write_bytes(b"\x80\x04 not an agent")
    assert [entry.card.game for entry in list_teachers(runs)] == [
        *["breakout"] * 4,
        "ms_pacman",
        "seaquest",
        "breakout",
    ]


def test_without_runs_there_is_the_zoo(runs: Path, tmp_path: Path) -> None:
    listed = list_teachers(tmp_path / "nowhere")
    assert [entry.reference for entry in listed] == ["zoo:breakout", "zoo:pacman-v2", "zoo:seaquest"]


@pytest.mark.parametrize("reference", ["breakout", "Breakout", "BREAK OUT"])
def test_a_game_is_the_best_own_run(runs: Path, reference: str) -> None:
    assert find_teacher(reference, runs).path.parent.name == "none-s2"


def test_a_flavour_is_a_game_of_its_own(runs: Path, put: Put) -> None:
    put(runs / "breakout-m4d0" / "a3c" / "none-s1" / "student.safetensors", "breakout:m4d0", 90.0)
    found = {name: find_teacher(name, runs).card.mean_score for name in ("breakout", "breakout:m0d0", "Breakout:m4")}
    assert found == {"breakout": 30.0, "breakout:m0d0": 30.0, "Breakout:m4": 90.0}
    with pytest.raises(UserError, match="no flavour m1: it has modes 0, 4, 8"):
        find_teacher("breakout:m1", runs)
    with pytest.raises(UserError, match="Unknown teacher 'breakout:m8d0'"):
        find_teacher("breakout:m8d0", runs)


def test_no_run_is_the_best_of_scores_under_different_rules(runs: Path, small_net: Net) -> None:
    net = small_net(4)
    sticky = get_protocol("machado", "breakout").to_dict()
    path = runs / "breakout" / "a3c" / "none-s6" / "student.safetensors"
    save_agent(path, net, Card("breakout", ACTIONS, net.arch, protocol=sticky, evaluation={"mean": 2.0}))
    with pytest.raises(UserError, match=r"different rules of play.*none-s2: 30.0 .*none-s6: 2.0 under machado"):
        find_teacher("breakout", runs)
    assert find_teacher(str(path), runs).card.mean_score == 2.0
    assert find_teacher("zoo:breakout", runs).card.mean_score == 400.0


def test_an_own_run_that_nobody_has_scored_comes_after_the_zoo(runs: Path, put: Put) -> None:
    # An interrupted run leaves a student too.
    put(runs / "seaquest" / "a3c" / "none-s1" / "student.safetensors", "seaquest")
    assert find_teacher("seaquest", runs).reference == "zoo:seaquest"
    assert find_teacher("pong", runs).path.parent.name == "none-s5"


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


def test_a_run_in_its_source_games_is_told_to_go_on_and_another_folder_is_not(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.yaml").write_text("")
    with pytest.raises(UserError, match="not a run of kfrl with a saved student"):
        find_teacher(str(folder), runs)
    (folder / "checkpoint").mkdir()
    with pytest.raises(UserError, match=r"has no student yet.*kfrl train --resume"):
        find_teacher(str(folder), runs)


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
    teachers, exact = load_teachers(references, runs, identify)
    assert [teacher.name for teacher in teachers] == ["breakout", "seaquest", "breakout-2", "breakout-3", "pong"]
    assert exact[1:4] == ("zoo:seaquest", "zoo:breakout", path)
    again, same = load_teachers(exact, runs, identify)
    assert same == exact
    for before, after in zip(teachers, again, strict=True):
        assert before.path.samefile(after.path)
        assert all(map(torch.equal, before.net.parameters(), after.net.parameters()))


def test_exact_references_do_not_depend_on_the_working_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (teacher,), exact = load_teachers(["breakout"], Path("runs"), identify)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    (again,), _ = load_teachers(exact, Path("runs"), identify)
    assert again.path.parent.name == teacher.path.parent.name == "none-s2"


def test_exact_references_stay_with_the_file_when_a_better_one_comes(runs: Path, put: Put) -> None:
    _, exact = load_teachers(["breakout"], runs, identify)
    put(runs / "breakout" / "a3c" / "none-s9" / "student.safetensors", "breakout", 999.0)
    (again,), _ = load_teachers(exact, runs, identify)
    assert again.path.parent.name == "none-s2"


# --- files of other programs ----------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path: Path, small_net: Net) -> Path:
    """A state dict of four actions that does not say its game."""
    path = tmp_path / "agents" / "ppo.pth"
    path.parent.mkdir()
    torch.save(AtariNet(4, ((4, 8, 4),), 8).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b.zip", Reference("a/b.zip")),
        ("sb3:b.zip@Ms. Pacman", Reference("b.zip", "sb3", "Ms. Pacman")),
        ("hub:owner/repo/dir/b.zip@Pong", Reference("hub:owner/repo/dir/b.zip", "", "Pong")),
        ("cleanrl:hub:owner/repo/b@Pong", Reference("hub:owner/repo/b", "cleanrl", "Pong")),
        ("a@b/c.pth", Reference("a@b/c.pth")),
        ("zoo:seaquest", Reference("zoo:seaquest")),
        ("", Reference("")),
    ],
)
def test_a_reference_is_taken_apart_and_put_together(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected
    assert str(expected) == text


def test_a_file_that_is_called_like_a_reference_goes_first(foreign: Path) -> None:
    odd = foreign.rename(foreign.with_name("plain:agent@Pong"))
    assert Reference.parse(str(odd)) == Reference(str(odd))


@pytest.mark.parametrize("prefix", ["", "plain:"])
def test_a_foreign_agent_is_a_teacher_like_any_other(runs: Path, foreign: Path, prefix: str) -> None:
    references = ["breakout", f"{prefix}{foreign}@Breakout", f"{prefix}{foreign}@Breakout"]
    teachers, exact = load_teachers(references, runs, identify)
    assert [teacher.name for teacher in teachers] == ["breakout", "breakout-2", "breakout-3"]
    card = teachers[1].card
    assert (card.game, card.actions, card.method) == ("breakout", ACTIONS, "imported")
    assert (card.protocol["name"], card.protocol["game"], card.mean_score) == ("paper", "breakout", None)
    assert not any(parameter.requires_grad for parameter in teachers[1].net.parameters())
    assert exact[1] == f"{prefix}{foreign}@breakout"
    assert load_teachers(exact, runs, identify)[1] == exact


def test_the_exact_reference_of_a_foreign_agent_does_not_depend_on_the_working_folder(
    runs: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(foreign.parent)
    assert load_teacher("plain:ppo.pth@Breakout", runs, identify)[1] == f"plain:{foreign}@breakout"


def test_a_foreign_agent_with_all_eighteen_actions(runs: Path, foreign: Path) -> None:
    torch.save(AtariNet(18, ((4, 8, 4),), 8).state_dict(), foreign)
    card = load_teacher(f"{foreign}@Breakout", runs, identify)[0].card
    assert card.actions == ALL_ACTIONS
    assert card.protocol["full_action_set"]
    assert not load_teacher(f"{foreign}@Seaquest", runs, identify)[0].card.protocol["full_action_set"]


def test_a_yaml_file_says_game_actions_and_score(runs: Path, foreign: Path) -> None:
    table = foreign.with_name("ppo.yaml")
    table.write_text(
        "weights: ppo.pth\ngame: Pong\nactions: [LEFT, NOOP, RIGHT, FIRE]\nscore: 20.5\npreprocessing: baselines\n"
        "layers: {convs: [{layer: conv1, stride: 4}], fc: fc, policy: policy, value: value}\n"
    )
    teacher, exact = load_teacher(str(table), runs, identify)
    assert (teacher.card.game, teacher.card.actions) == ("pong", ("LEFT", "NOOP", "RIGHT", "FIRE"))
    assert (teacher.card.mean_score, teacher.card.preprocessing.fire_reset) == (20.5, True)
    assert exact == f"{table}@pong"
    read = [teacher.sha256]
    torch.save({name: 2 * tensor for name, tensor in torch.load(foreign, weights_only=True).items()}, foreign)
    read.append(load_teacher(str(table), runs, identify)[0].sha256)
    table.write_text(table.read_text() + "notes: another\n")
    read.append(load_teacher(str(table), runs, identify)[0].sha256)
    assert len(set(read)) == 3, "the weights count, and so does the table"


def test_a_table_behind_a_link_is_found_again(runs: Path, foreign: Path, tmp_path: Path) -> None:
    """The Hub's cache has links to files without a suffix, and the table's weights lie beside the link."""
    (tmp_path / "blob").write_text(
        "weights: ppo.pth\ngame: Breakout\n"
        "layers: {convs: [{layer: conv1, stride: 4}], fc: fc, policy: policy, value: value}\n"
    )
    link = foreign.with_name("agent.yaml")
    link.symlink_to(tmp_path / "blob")
    first, exact = load_teacher(str(link), runs, identify)
    again, _ = load_teacher(exact, runs, identify)
    assert again.sha256 == first.sha256


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("{}", ["does not name the game", "ppo.pth@GAME", "ppo.pth@Breakout"]),
        ("{}@Braekout", ["Unknown game 'Braekout'", "'Breakout'"]),
        ("{}@Pong", ["4 actions", "Pong has 6 (NOOP, FIRE, RIGHT, LEFT, RIGHTFIRE, LEFTFIRE)", "18"]),
        ("cleanrl:{}@Breakout", ["not of format cleanrl"]),
        ("sb3:{}x@Breakout", ["There is no file", "Did you mean", "ppo.pth"]),
        ("ppo.zip", ["There is no file ppo.zip"]),
    ],
)
def test_a_foreign_file_that_cannot_be_used(runs: Path, foreign: Path, reference: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_teacher(reference.format(foreign), runs, identify)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_our_own_file_keeps_its_game(runs: Path, put: Put, tmp_path: Path) -> None:
    path = put(tmp_path / "agent.safetensors", "ms_pacman")
    for spelling in ("", "@ms_pacman", "@Ms. Pacman"):
        teacher, exact = load_teacher(f"{path}{spelling}", runs, identify)
        assert (teacher.card.game, exact) == ("ms_pacman", str(path))
    with pytest.raises(UserError, match="plays ms_pacman, not Pong"):
        load_teacher(f"{path}@Pong", runs, identify)


def test_every_agent_that_ships_with_kfrl_loads(tmp_path: Path) -> None:
    entries = list_teachers(tmp_path)
    assert len(entries) == len(list(store.ZOO.iterdir()))
    for entry in entries:
        (teacher,), _ = load_teachers([entry.reference], tmp_path, identify)
        logits, _ = teacher.net(torch.zeros(1, 4, 84, 84, dtype=torch.uint8))
        assert logits.shape == (1, len(teacher.card.actions))
        assert teacher.card.evaluation["mean"] == entry.card.mean_score
