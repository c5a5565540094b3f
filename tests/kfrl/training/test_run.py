"""The net of a run is built once a process, and training goes on as if it had just been built."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agents.methods.fine_tune import FineTune
from kfrl.cli.main import main
from kfrl.runs.folder import RunFolder
from kfrl.seeding import seed_everything, stream
from kfrl.supervised.methods.baseline import METHOD as BASELINE
from kfrl.training.run import MethodRun

IMAGES = "supervised train --data digits --net mlp-8 --epochs 1 --batch-size 512 --run-dir run".split()
GAMES = "train --game Breakout --teachers seaquest --method fine-tune --algo a2c --steps 64 --envs-per-worker 2".split()


@dataclass(frozen=True)
class Config:
    run_dir: Path = Path("here")


@dataclass(frozen=True)
class Run(MethodRun[str]):
    config: Config
    folder: RunFolder

    def method(self) -> str:
        return "a method"

    def build(self, method: str) -> nn.Module:
        return nn.Linear(3, 2)

    @property
    def seed(self) -> int:
        return 7


def test_a_net_that_is_looked_at_is_the_one_that_trains() -> None:
    run = Run(Config(), RunFolder(Path("here")))
    before = torch.get_rng_state()
    looked_at = run.built()
    assert torch.equal(torch.get_rng_state(), before), "looking draws no random number of the process's"
    torch.rand(5)
    taken, drawn = run.take_built(), torch.rand(4)
    assert taken is looked_at
    seed_everything(stream(7, 0))
    fresh = nn.Linear(3, 2)
    assert torch.equal(taken.net.weight, fresh.weight)
    assert torch.equal(drawn, torch.rand(4)), "as after a build at this place"


def test_a_second_trainer_gets_a_net_of_its_own() -> None:
    run = Run(Config(), RunFolder(Path("here")))
    first, second = run.take_built().net, run.take_built().net
    assert first is not second and torch.equal(first.weight, second.weight)


def test_a_run_elsewhere_takes_its_net_along() -> None:
    run = Run(Config(), RunFolder(Path("here")))
    net = run.built().net
    moved = run.at(RunFolder(Path("there")))
    assert (moved.folder.path, moved.config.run_dir) == (Path("there"), Path("there"))
    assert moved.built().net is net and run.built().net is not net


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        (BASELINE, IMAGES),
        (BASELINE, [*IMAGES, "--dry-run"]),
        (FineTune, [*GAMES, "--curve-points", "0", "--eval-episodes", "0"]),
        (FineTune, [*GAMES, "--dry-run"]),
    ],
    ids=["images", "images, dry run", "games", "games, dry run"],
)
def test_a_command_builds_once(
    method: type[Any],
    flags: list[str],
    noise_games: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.plan.MEASURED", 0.0)
    monkeypatch.setattr("kfrl.supervised.plan.MEASURED", 0.0)
    built = []
    real = method.build

    def counting(self: Any, *arguments: Any) -> Any:
        built.append(self)
        return real(self, *arguments)

    monkeypatch.setattr(method, "build", counting)
    assert main(flags) == 0
    assert len(built) == 1
