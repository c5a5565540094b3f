import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.config import TrainConfig
from agents.launch import Session
from agents.run import resolve
from agents.teachers.formats import Card, save_agent
from envs.atari import ALL_ACTIONS
from kfrl.cli.main import main
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import save_checkpoint

SMALL = (((4, 8, 8), (4, 4, 2)), 8)
"""Convolutions and hidden units."""
PONG = ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = AtariNet(6, *SMALL)
    save_agent(tmp_path / "pong.safetensors", net, Card(game="pong", actions=PONG, arch=net.arch))
    full = AtariNet(18, *SMALL)
    save_agent(tmp_path / "all.safetensors", full, Card(game="pong", actions=ALL_ACTIONS, arch=full.arch))
    return tmp_path / "pong.safetensors"


def test_json_holds_every_score_the_interval_and_the_normalised_score(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(agent), "--episodes", "3", "--json", "scores.json"]) == 0
    result = json.loads(Path("scores.json").read_text())
    assert len(result["scores"]) == 3
    assert result["mean"] == pytest.approx(sum(result["scores"]) / 3)
    assert result["ci_low"] <= result["mean"] <= result["ci_high"]
    assert result["human_normalised"] == pytest.approx((result["mean"] + 20.7) / (14.6 + 20.7))
    assert result["protocol"]["name"] == "paper"
    assert "95 % interval" in capsys.readouterr().out


def test_seed_decides_the_games_and_greedy_is_another_policy(agent: Path) -> None:
    scores = []
    for flags in ([], [], ["--seed", "1"], ["--greedy"]):
        assert main(["eval", str(agent), "--episodes", "1", "--json", "scores.json", *flags]) == 0
        scores.append(json.loads(Path("scores.json").read_text())["episode_steps"])
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]
    assert scores[0] != scores[3]


def test_flavours_are_played_beside_the_agents_own(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(agent), "--episodes", "1", "--json", "scores.json"]
    assert main([*command, "--flavours", "d3,m0d0"]) == 0
    assert "Pong, the agent's own flavour first" in capsys.readouterr().out
    found = json.loads(Path("scores.json").read_text())["flavours"]
    assert list(found) == ["m0d0", "m0d3"]
    assert found["m0d3"]["game"] == found["m0d3"]["protocol"]["game"] == "pong:m0d3"
    assert found["m0d0"]["human_normalised"] is not None
    assert found["m0d3"]["human_normalised"] is None
    assert main([*command, "--flavours", "m2"]) == 2
    assert "Pong has no flavour m2: it has modes 0, 1 and difficulties 0, 1, 2, 3" in capsys.readouterr().err


def test_all_flavours_are_those_of_the_agents_rom(agent: Path) -> None:
    net = AtariNet(18, *SMALL)
    save_agent(Path("seaquest.safetensors"), net, Card(game="seaquest", actions=ALL_ACTIONS, arch=net.arch))
    command = ["eval", "seaquest.safetensors", "--episodes", "1", "--json", "scores.json"]
    assert main([*command, "--flavours", "all"]) == 0
    assert list(json.loads(Path("scores.json").read_text())["flavours"]) == ["m0d0", "m0d1"]


def test_video_of_an_agent(agent: Path) -> None:
    assert main(["eval", str(agent), "--episodes", "1", "--video", "play.mp4"]) == 0
    assert Path("play.mp4").stat().st_size > 10_000


def test_a_run_that_leans_on_nobody_is_scored_when_its_teachers_and_checkpoints_are_gone(
    finished_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "run", method="progressive", teachers=str(tmp_path / "gone.safetensors"))
    assert main(["eval", str(run), "--episodes", "1"]) == 0
    assert "It needs no teacher: the 4,281 numbers in its file" in capsys.readouterr().out


def test_run_that_leans_on_its_teachers_is_scored_with_links_and_without(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = {"fold_at": None, "choose_channels": False}
    convs, hidden = SMALL
    config = TrainConfig(
        game="Pong",
        teachers=str(agent),
        run_dir=Path("run"),
        steps=1000,
        methods={"knowledge-flow": flow},
        convs=convs,
        hidden=hidden,
    )
    run = Session.start(config).run
    net = run.method().build(run.spec, run.teachers)
    net.flow.student.policy.bias.data[0] = 50.0  # alone it does nothing all the time, and with its links much else
    for steps, parts in {100: 2, 1000: 1}.items():  # before the fold, and after it
        if parts == 1:
            for r2 in net.fold_r2.buffers():
                r2.fill_(1.0)
        tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
        save_checkpoint(run.folder.checkpoints, steps, tensors, {"global_step": steps})
        run.save_student(run.method().export(net), steps)
        assert main(["eval", "run", "--episodes", "1", "--json", "scores.json"]) == 0
        result = json.loads(Path("scores.json").read_text())
        said = capsys.readouterr().out
        assert ("with_links" in result) == (parts == 2)
        assert ("with its teachers' links" in said) == (parts == 2)
        assert ("It is half-trained: 100 of 1,000 steps." in said) == (parts == 2)
        if parts == 2:
            assert result["with_links"]["episode_steps"] != result["episode_steps"]


def test_a_student_of_flow_is_scored_when_its_teachers_are_gone(
    finished_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "run", teachers=str(tmp_path / "gone.safetensors"))
    assert main(["eval", str(run), "--episodes", "1", "--json", str(tmp_path / "scores.json")]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert "Its score with its teachers' links is left out: There is no file" in said
    assert "needs no teacher" not in said
    assert len(json.loads((tmp_path / "scores.json").read_text())["scores"]) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["missing.safetensors"], ["missing.safetensors"]),
        (["qbertt"], ["'qbertt'"]),
        (["pong.safetensors", "--protocol", "machdo"], ["'machdo'", "'machado'"]),
        (["all.safetensors", "--protocol", "paper"], ["18 actions", "has 6", "without DOWN"]),
        (["pong.safetensors", "--episodes", "0"], ["episodes", "0"]),
        (["pong.safetensors", "--video", "play.avi"], ["play.avi", ".mp4"]),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    agent: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    before = sorted(path.name for path in Path().iterdir())
    assert main(["eval", *flags]) == 2
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == [], said
    assert sorted(path.name for path in Path().iterdir()) == before


def test_protocol_of_the_file_is_the_default(agent: Path) -> None:
    net = AtariNet(18, *SMALL)
    run = resolve(TrainConfig(game="Pong", protocol="machado"))
    card = replace(run.card(0, net), arch=net.arch)
    save_agent(Path("machado.safetensors"), net, card)
    assert main(["eval", "machado.safetensors", "--episodes", "1", "--json", "scores.json"]) == 0
    assert json.loads(Path("scores.json").read_text())["protocol"]["sticky"] == 0.25


def test_an_agent_plays_a_larger_action_set_by_the_names_of_its_actions(agent: Path) -> None:
    assert main(["eval", str(agent), "--protocol", "machado", "--episodes", "1", "--json", "scores.json"]) == 0
    assert json.loads(Path("scores.json").read_text())["protocol"]["full_action_set"]


def test_other_rules_than_those_of_the_training_are_named(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = AtariNet(6, *SMALL)
    save_agent(Path("paper.safetensors"), net, replace(resolve(TrainConfig(game="Pong")).card(0, net), arch=net.arch))
    flags = ["eval", "paper.safetensors", "--episodes", "1", "--json", "scores.json"]
    assert main(flags) == 0
    assert "other rules" not in capsys.readouterr().out
    assert main([*flags, "--protocol", "machado"]) == 0
    result = json.loads(Path("scores.json").read_text())
    # Nobody takes the score for one under the rules that it learned by.
    assert result["trained_under"]["name"] == "paper"
    said = " ".join(capsys.readouterr().out.split())
    assert "It learned under other rules: paper (" in said
    assert f"these are machado ({result['protocol']['fingerprint']})" in said


def test_an_agent_of_another_program_is_played_as_it_is(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(AtariNet(6, ((4, 8, 4),), 8).state_dict(), "net.pth")
    assert main(["eval", "net.pth@Pong", "--episodes", "1"]) == 0
    assert "net alone" in capsys.readouterr().out
