"""`--dry-run`: what a run would do, and not a file of it."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.config import TrainConfig
from agents.plan import expected_memory, plan_of
from agents.run import resolve
from agents.teachers.formats import load_agent, save_agent
from kfrl.cli.main import main
from kfrl.nets.atari.net import AtariNet

SMALL = "--workers 2 --envs-per-worker 1 --convs 4 8 8 --hidden 8 --fold-at None --dry-run".split()


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.plan.MEASURED", 0.0)
    monkeypatch.setattr("kfrl.supervised.plan.MEASURED", 0.0)


def test_it_says_links_sizes_rate_and_folder_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--game", "Alien", "--teachers", "seaquest", *SMALL]) == 0
    said = capsys.readouterr().out
    assert re.search(r"conv1 .* seaquest .* Conv1x1 .* 128 ", said), "32 channels of the teacher to 4"
    for line in ("parameters train", "memory: about", "disk: about", r"rate: about [\d,]+ steps a second"):
        assert re.search(line, said), line
    assert "The folder would be runs/alien/knowledge-flow/seaquest-s1-" in said
    assert not list(tmp_path.iterdir())


def test_ppo_and_images_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--game Pong --algo ppo --envs-per-worker 2 --t-max 4 --batch-size 8 --convs 4 8 8 --hidden 8 --dry-run"
    assert main(["train", *flags.split()]) == 0
    assert "ppo with 2 games in step" in capsys.readouterr().out
    assert main(["supervised", "train", "--data", "digits", "--net", "mlp-8", "--epochs", "2", "--dry-run"]) == 0
    assert re.search(r"rate: about [\d,]+ images a second", capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused_as_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--game", "Alienn", "--dry-run"]) == 2
    assert "Did you mean 'Alien'?" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--dry-run"]) == 2
    assert "takes no other flag, got --dry-run" in capsys.readouterr().err


def test_fine_tuning_says_what_was_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--game Alien --teachers zoo:seaquest --method fine-tune --workers 1 --envs-per-worker 1 --dry-run"
    assert main(["train", *flags.split()]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "loaded conv1 (16 x 4 x 8 x 8) from seaquest: conv1" in said
    assert "fresh policy (18 x 256)" in said
    assert "skipped seaquest: policy (18 x 256)" in said


def test_a_foreign_teacher_says_what_became_of_each_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = AtariNet(4, ((4, 8, 4), (4, 4, 2), (4, 3, 1)), 8)
    names = {"conv1": "network.0", "conv2": "network.2", "conv3": "network.4", "fc": "network.7"}
    names |= {"policy": "actor", "value": "critic"}
    held = {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": tensor for key, tensor in net.state_dict().items()}
    torch.save({name: tensor for name, tensor in held.items() if name != "critic.bias"}, tmp_path / "ppo.pt")
    assert main(["train", "--game", "Alien", "--teachers", "ppo.pt@Breakout", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "loaded   conv1.weight from network.0.weight" in said
    assert "fresh    value.bias = 0; the file has no critic.bias" in said


def test_sizes_are_counted_as_by_hand(small_net: Callable[[int], AtariNet], tmp_path: Path) -> None:
    run = resolve(
        TrainConfig(game="Pong", workers=2, envs_per_worker=1, convs=((4, 8, 8),), hidden=8, run_dir=tmp_path / "run")
    )
    parameters = sum(p.numel() for p in small_net(6).parameters())
    plan = plan_of(run)
    assert plan.trained == plan.deployed == parameters
    assert plan.shared == 4 * 3 * parameters, "parameters and Adam's two moments"
    assert plan.written == 4 * (3 * 3 + 1) * parameters + 50e6, "three checkpoints and the student"
    save_agent(tmp_path / "t.safetensors", small_net(6), run.card(0, small_net(6)))
    teachers = str(tmp_path / "t.safetensors")
    assert load_agent(tmp_path / "t.safetensors").card.game == "pong"
    flow = resolve(
        TrainConfig(
            game="Pong",
            teachers=teachers,
            workers=2,
            envs_per_worker=1,
            convs=((4, 8, 8),),
            hidden=8,
            run_dir=tmp_path / "flow",
        )
    )
    remembers = plan_of(flow)
    assert remembers.method.memory_bytes == 65_536 * 4 * 84 * 84
    assert expected_memory(flow, remembers) > 65_536 * 4 * 84 * 84
    assert math.isclose(
        remembers.shared,
        4 * (3 * remembers.trained + parameters + sum(t.numel() for t in remembers.net.state_dict().values()))
        - 4 * remembers.trained,
    )
