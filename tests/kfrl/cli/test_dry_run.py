"""`--dry-run`: what a run would do, and not a file of it."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.config import TrainConfig
from agents.engines.settings import ACKTRConfig
from agents.engines.update import Updater
from agents.launch import Session
from agents.plan import expected_memory, expected_rate, plan_of
from agents.run import resolve
from agents.teachers.formats import load_agent, save_agent
from kfrl.cli.main import main
from kfrl.nets.atari.net import AtariNet
from kfrl.optim.kfac import KroneckerFactors
from kfrl.training.session import Silent

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


ACKTR = TrainConfig(
    game="Breakout",
    algo="acktr",
    envs_per_worker=2,
    t_max=4,
    convs=((4, 8, 8),),
    hidden=8,
    steps=8 * 13,
    curve_points=0,
    eval_episodes=0,
)


def test_acktrs_factors_are_counted_as_they_are_saved(tmp_path: Path, noise_games: None) -> None:
    session = Session.start(replace(ACKTR, run_dir=tmp_path / "run"))
    plan = plan_of(session.run)
    session.complete(Silent())
    (newest, *_) = sorted((tmp_path / "run" / "checkpoint").glob("*.safetensors"), reverse=True)
    checkpoint = newest.stat().st_size
    student = 4 * sum(tensor.numel() for tensor in plan.net.state_dict().values())
    assert plan.written == pytest.approx(3 * checkpoint + student + 50e6, abs=3 * 20_000), "names are not counted"
    held = 4 * sum(tensor.numel() for name, tensor in session.trainer.optimiser_state.items() if name != "count")
    assert plan.factors == held > 1e6
    without = plan_of(resolve(replace(ACKTR, algo="a2c", run_dir=tmp_path / "a2c")))
    assert without.factors == 0
    assert plan.shared == without.shared
    # The process itself may grow between the two.
    assert expected_memory(session.run, plan) - expected_memory(session.run, without) == pytest.approx(held, rel=0.1)


def test_acktrs_rate_contains_its_share_of_a_decomposition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]

    def taking(seconds: float, what: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*given: Any) -> Any:
            now[0] += seconds
            return what(*given)

        return slow

    monkeypatch.setattr("agents.plan.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(Updater, "update", taking(1.0, Updater.update))
    monkeypatch.setattr(KroneckerFactors, "observe", taking(0.5, KroneckerFactors.observe))
    monkeypatch.setattr(KroneckerFactors, "natural", taking(0.25, KroneckerFactors.natural))
    monkeypatch.setattr(KroneckerFactors, "decompose", taking(50.0, KroneckerFactors.decompose))
    run = resolve(replace(ACKTR, run_dir=tmp_path / "run", acktr=ACKTRConfig(inverse_period=40)))
    # 2 games x 4 steps for an update, a fortieth of a decomposition with each.
    assert expected_rate(run, plan_of(run)) == pytest.approx(8 / (1.0 + 0.5 + 0.25 + 50.0 / 40))
