"""Every method under every engine that it can: stopped, resumed, finished, and its student scored."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agents.config import TrainConfig
from agents.engines.registry import ENGINES
from agents.methods import get_method, method_names
from agents.run import Run, resolve
from agents.teachers.formats import Card, load_agent, save_agent
from envs.atari import action_set
from envs.protocols import get_protocol
from kfrl.cli.main import main
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.training.status import Status

pytestmark = pytest.mark.slow

SHAPES = {
    "a3c": {"workers": 2, "envs_per_worker": 1},
    "a2c": {"envs_per_worker": 2},
    "acktr": {"envs_per_worker": 2, "t_max": 4},
    "ppo": {"envs_per_worker": 2, "t_max": 8, "ppo": replace(TrainConfig().ppo, epochs=1, batch_size=8)},
}
MORE = 64
"""Steps after the stop."""
UNFACTORED = [("knowledge-flow", "acktr"), ("progressive", "acktr"), ("pathnet", "acktr")]
"""Nets with parameters that K-FAC cannot factor; knowledge-flow while it is linked."""
CASES = [
    (name, algo, False) for name in method_names() for algo in get_method(name).algos if (name, algo) not in UNFACTORED
]


class Screen:
    """Shows nothing; presses Ctrl-C at the first update of phase `stop_in`."""

    def __init__(self, stop_in: int | None = None) -> None:
        self.stop_in = stop_in

    def update(self, status: Status) -> None:
        phase = int(status.part.split()[0]) - 1 if status.part else 0
        if phase == self.stop_in and status.done:
            os.kill(os.getpid(), signal.SIGINT)

    def say(self, text: str) -> None:
        pass


def taught_by(path: Path, game: str) -> str:
    actions = action_set(get_protocol("paper", game))
    net = AtariNet(len(actions), ((4, 8, 8),), 8)
    save_agent(path, net, Card(game, actions, net.arch))
    return str(path)


METHODS = {
    "pathnet": {"module_convs": ((4, 8, 8),), "module_units": 8, "population": 4},
    "knowledge-flow": {"fold_at": None, "choose_channels": False},
}


def config_of(name: str, algo: str, folder: Path) -> TrainConfig:
    method = get_method(name)
    played = "pong" if method.takes_sources == "teachers-before" else "breakout"
    shape = {name: value for name, value in {"convs": ((4, 8, 8),), "hidden": 8}.items() if name not in method.unused}
    return TrainConfig(
        game="Breakout",
        method=name,
        algo=algo,
        teachers="" if method.takes_teachers == "none" else taught_by(folder / f"{played}.safetensors", played),
        source_games="Pong" if method.takes_sources in ("beside", "before") else "",
        steps=10**6,
        methods=METHODS,
        curve_points=0,
        eval_episodes=0,
        run_dir=folder / "run",
        **shape,
        **SHAPES[algo],
    )


def write(config: TrainConfig) -> Run:
    run = resolve(config)
    run.folder.write_config(run.config)
    return run


@pytest.mark.parametrize(("name", "algo"), UNFACTORED)
def test_nets_that_k_fac_cannot_factor_are_refused(name: str, algo: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot factor .* Use --algo a2c"):
        resolve(config_of(name, algo, tmp_path))


@pytest.mark.parametrize(("name", "algo", "heads_only"), [*CASES, ("fine-tune", "a2c", True)])
def test_a_run_is_stopped_goes_on_to_its_end_and_its_student_is_scored(
    name: str,
    algo: str,
    heads_only: bool,
    tmp_path: Path,
    short_games: None,
    noise_games: None,
    obs: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    methods = {**METHODS, "fine-tune": {"heads_only": heads_only}}
    run = write(replace(config_of(name, algo, tmp_path), methods=methods))
    saved = None
    for phase in range(len(run.phases)):
        stopped = ENGINES[algo](run, Screen(stop_in=phase), saved).train()
        assert stopped.stopped_by == signal.SIGINT
        saved = latest_checkpoint(run.folder.checkpoints)
        assert saved.state["phase"] == phase
        source_steps = run.config.source_steps and stopped.source_steps + MORE
        run = write(replace(run.config, source_steps=source_steps))

    run = write(replace(run.config, steps=stopped.step + MORE))
    trainer = ENGINES[algo](run, Screen(), saved)
    assert (trainer.step, trainer.source_steps) == (stopped.step, stopped.source_steps)
    for name, parameter in trainer.net.named_parameters():
        assert torch.equal(parameter, saved.tensors[f"net.{name}"]), name
    assert torch.equal(trainer.shared.adam_steps, saved.tensors["adam_steps"])
    assert trainer.shared.adam_steps.any()
    before = {name: parameter.detach().clone() for name, parameter in trainer.net.named_parameters()}
    outcome = trainer.train()
    assert (outcome.failure, outcome.stopped_by) == (None, None)
    assert outcome.step >= stopped.step + MORE
    moved = {name for name, parameter in outcome.net.named_parameters() if not torch.equal(parameter, before[name])}
    heads = {name for name in before if name.split(".")[-2] in ("policy", "value")}
    assert moved == heads if heads_only else moved - heads

    student = trainer.student()
    alone = load_agent(run.folder.student)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(alone.net(obs), student(obs), strict=True))
    assert (alone.card.game, alone.card.steps) == ("breakout", outcome.step)
    assert alone.card.trains_value == any(name.split(".")[-2] == "value" for name in moved)
    assert main(["eval", "run", "--episodes", "1", "--json", "scores.json"]) == 0
    assert json.loads(Path("scores.json").read_text())["steps"] == outcome.step
    assert "student alone" in capsys.readouterr().out
