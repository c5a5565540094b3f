import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.compare.records import read_run
from agents.teachers.store import find_teacher
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import save_checkpoint
from kfrl.runs.folder import Skipped, collect

Build = Callable[..., Path]


def reasons(skipped: list[Skipped]) -> dict[str, str]:
    return {entry.path.name: entry.reason for entry in skipped}


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_is_read_from_its_folder(finished_run: Build, tmp_path: Path) -> None:
    run = read_run(finished_run(tmp_path / "run", [1.0, 2.0, 6.0], seed=7, game="ms_pacman"))
    assert (run.game, run.config.seed, run.score, run.final.scores) == ("ms_pacman", 7, 3.0, (1.0, 2.0, 6.0))
    assert run.last_step == 100
    # conv1 4 x 4 x 8 x 8 + 4, fc 8 x 400 + 8, nine actions and a value of 8 units each.
    assert run.deployed == (1024 + 4) + (3200 + 8) + (9 + 1) * (8 + 1)
    assert (run.trained, run.teacher_frames, run.group) == (None, 0, None)


def test_trained_parameters_are_those_of_the_optimiser_in_the_last_checkpoint(
    finished_run: Build, tmp_path: Path
) -> None:
    path = finished_run(tmp_path / "run")
    tensors = {name: torch.zeros(2, 3) for name in ("net.a", "net.frozen", "exp_avg.a", "exp_avg_sq.a")}
    save_checkpoint(path / "checkpoint", 50, tensors | {"exp_avg.b": torch.zeros(100)}, {})
    save_checkpoint(path / "checkpoint", 100, tensors | {"exp_avg.b": torch.zeros(5)}, {})
    assert read_run(path).trained == 6 + 5


def test_of_damaged_checkpoints_an_older_one_says_what_was_trained(finished_run: Build, tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run")
    save_checkpoint(path / "checkpoint", 50, {"exp_avg.a": torch.zeros(7)}, {})
    save_checkpoint(path / "checkpoint", 100, {"exp_avg.a": torch.zeros(8)}, {})
    older, newest = sorted((path / "checkpoint").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:20])
    assert read_run(path).trained == 7
    older.unlink()
    run = read_run(path)
    assert (run.trained, run.score) == (None, 1.5)


def test_teacher_frames_are_the_teachers_own_steps(finished_run: Build, tmp_path: Path) -> None:
    steps = find_teacher("zoo:seaquest", tmp_path).card.steps
    assert steps > 0
    run = read_run(finished_run(tmp_path / "one", teachers="zoo:seaquest"))
    assert run.teacher_frames == 4 * steps
    # A teacher that does not say how long it was trained, one that is gone, one that would have to be fetched.
    silent = finished_run(tmp_path / "silent") / "student.safetensors"
    for number, other in enumerate([str(silent), "gone.safetensors", "hub:someone/something"]):
        run = read_run(finished_run(tmp_path / f"run{number}", teachers=f"zoo:seaquest,{other}"))
        assert run.teacher_frames is None


def test_an_agent_of_another_program_says_how_long_it_was_trained(
    finished_run: Build, tmp_path: Path, small_net: Callable[[int], AtariNet]
) -> None:
    torch.save(small_net(4).state_dict(), tmp_path / "ppo.pth")
    (tmp_path / "ppo.yaml").write_text(
        "weights: ppo.pth\ngame: Breakout\nsteps: 1000\n"
        "layers: {convs: [{layer: conv1, stride: 8}], fc: fc, policy: policy, value: value}\n"
    )
    path = finished_run(tmp_path / "run", teachers=f"{tmp_path / 'ppo.yaml'}@breakout,zoo:seaquest")
    assert read_run(path).teacher_frames == 4 * (1000 + find_teacher("zoo:seaquest", tmp_path).card.steps)


def test_runs_are_found_at_any_depth_and_read_once(finished_run: Build, tmp_path: Path) -> None:
    for name in ("a", "deep/down/b", "deep/c"):
        finished_run(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no run")
    records, skipped = collect([str(tmp_path / "deep"), str(tmp_path), str(tmp_path / "a")], read_run)
    assert [record.path.name for record in records] == ["c", "b", "a"]
    assert skipped == []


def test_a_name_goes_to_all_runs_of_a_folder(finished_run: Build, tmp_path: Path) -> None:
    finished_run(tmp_path / "mine" / "a")
    finished_run(tmp_path / "mine" / "b")
    finished_run(tmp_path / "x=y")
    named, other = f"with expert={tmp_path / 'mine'}", str(tmp_path / "x=y")
    records, _ = collect([named, other], read_run)
    assert [record.group for record in records] == ["with expert", "with expert", None]
    # Also where the folder was met before without one.
    records, _ = collect([str(tmp_path), named], read_run)
    assert {record.path.name: record.group for record in records} == {
        "a": "with expert",
        "b": "with expert",
        "x=y": None,
    }
    with pytest.raises(UserError, match="two arms, 'with expert' and 'mine'"):
        collect([named, f"mine={tmp_path / 'mine' / 'b'}"], read_run)


def test_runs_behind_links_are_found_once_and_a_circle_ends(finished_run: Build, tmp_path: Path) -> None:
    finished_run(tmp_path / "elsewhere" / "a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "runs")
    (tmp_path / "elsewhere" / "A-latest").symlink_to(tmp_path / "elsewhere" / "a")
    records, skipped = collect([str(tmp_path / "runs"), str(tmp_path / "elsewhere")], read_run)
    assert [record.path.name for record in records] == ["a"]
    assert skipped == []


def test_a_log_beside_runs_does_not_hide_them(finished_run: Build, tmp_path: Path) -> None:
    finished_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "log.txt").write_text("")
    records, skipped = collect([str(tmp_path / "runs")], read_run)
    assert ([record.path.name for record in records], skipped) == (["a"], [])


def test_what_is_not_a_whole_run_is_named_and_left_out(finished_run: Build, tmp_path: Path) -> None:
    good = finished_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "deeper" / "empty-too").mkdir(parents=True)
    for file in ("config.yaml", "eval.json", "student.safetensors", "metrics.csv"):
        (finished_run(tmp_path / f"without-{file}") / file).unlink()
        path = finished_run(tmp_path / f"cut-{file}") / file
        path.write_bytes(path.read_bytes()[:40])
        (finished_run(tmp_path / f"garbage-{file}") / file).write_bytes(b"\x93\xff\x00 garbage")
    (finished_run(tmp_path / "words-for-numbers") / "metrics.csv").write_text("global_step,a\n1,many\n")
    (finished_run(tmp_path / "no-scores") / "eval.json").write_text("[]")
    edit(finished_run(tmp_path / "nan") / "eval.json", scores=[float("nan")])
    edit(finished_run(tmp_path / "no-games") / "eval.json", scores=[])
    edit(finished_run(tmp_path / "early") / "eval.json", steps=99)
    edit(finished_run(tmp_path / "edited") / "eval.json", protocol={"name": "paper", "game": "breakout", "x": 1})
    config = finished_run(tmp_path / "other-game") / "config.yaml"
    config.write_text(config.read_text().replace("Breakout", "Pong"))
    (tmp_path / "a-file").write_text("")
    for name, left in (("only-log", "log.txt"), ("only-checkpoints", "checkpoint/1.safetensors")):
        (tmp_path / name / left).parent.mkdir(parents=True)
        (tmp_path / name / left).write_text("")
    (finished_run(tmp_path / "without-games", eval_episodes=0) / "eval.json").unlink()

    records, skipped = collect([str(path) for path in sorted(tmp_path.iterdir())], read_run)
    assert [record.path for record in records] == [good]
    named = reasons(skipped)
    assert len(skipped) == len(list(tmp_path.iterdir())) - 1
    expected = {
        "empty": "empty",
        "empty-too": "empty",
        "a-file": "not a folder",
        "without-eval.json": "kfrl train --resume",
        "without-config.yaml": "no config.yaml",
        "without-student.safetensors": "student is missing",
        "without-metrics.csv": "learning curve is missing",
        "cut-eval.json": "damaged",
        "cut-student.safetensors": "truncated",
        "cut-metrics.csv": "no row",
        "garbage-metrics.csv": "damaged",
        "words-for-numbers": "many",
        "no-scores": "expected an object",
        "nan": "finite",
        "no-games": "scores",
        "early": "99 of its 100",
        "edited": "protocol block",
        "only-log": "no config.yaml",
        "only-checkpoints": "no config.yaml",
        "without-games": "eval_episodes: 0",
        "other-game": "the game is Pong in config.yaml and breakout in eval.json",
    }
    assert {name: words for name, words in expected.items() if words not in named[name]} == {}, named


def test_a_folder_that_does_not_exist_is_an_error(finished_run: Build, tmp_path: Path) -> None:
    finished_run(tmp_path / "a")
    with pytest.raises(UserError, match=r"no folder .*typo"):
        collect([str(tmp_path / "a"), str(tmp_path / "typo")], read_run)
    with pytest.raises(UserError, match=r"no folder .*typo"):
        collect([f"name={tmp_path / 'typo'}"], read_run)


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("")
    assert reasons(collect([str(tmp_path / "books")], read_run)[1]) == {"books": "contains no run"}
