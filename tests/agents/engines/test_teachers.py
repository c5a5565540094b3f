"""Real, short runs of worker processes with frozen teachers."""

from pathlib import Path

import pytest
import torch

from agents.config import FlowConfig, TrainConfig
from agents.engines.registry import ENGINES
from agents.methods.knowledge_flow import GuidedFlow
from agents.run import resolve
from agents.teachers.formats import Card, load_agent, save_agent
from agents.teachers.store import ZOO
from agents.trainer import Status
from envs.atari import action_set
from envs.protocols import get_protocol
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics

pytestmark = pytest.mark.slow


class Silent:
    def update(self, status: Status) -> None:
        pass

    def say(self, text: str) -> None:
        pass


@pytest.mark.parametrize("method", ["progressive", "policy-distillation", "actor-mimic"])
def test_workers_share_two_teachers_of_other_shapes_and_leave_them_unchanged(method: str, tmp_path: Path) -> None:
    actions = action_set(get_protocol("paper", "pong"))
    small = AtariNet(len(actions), ((4, 8, 8), (4, 3, 1), (4, 3, 1)), 8)
    save_agent(tmp_path / "pong.safetensors", small, Card("pong", actions, small.arch))
    settings = TrainConfig(
        game="Seaquest",
        method=method,
        teachers=f"zoo:seaquest,{tmp_path / 'pong.safetensors'}",
        steps=1000,  # both workers get to play
        workers=2,
        envs_per_worker=2,
        convs=((4, 8, 8), (4, 4, 2)),
        hidden=8,
        curve_points=0,
        eval_episodes=0,
        run_dir=tmp_path / "run",
    )
    run = resolve(settings)
    run.folder.write_config(run.config)
    outcome = ENGINES["a3c"](run, Silent(), None).train()
    assert outcome.failure is None
    assert outcome.step >= 1000
    assert (outcome.source_steps > 0) == (method != "progressive")
    for teacher, path in zip(run.teachers, (ZOO / "seaquest.safetensors", tmp_path / "pong.safetensors"), strict=True):
        held = load_agent(path).net.state_dict()
        assert all(torch.equal(tensor, held[name]) for name, tensor in teacher.net.state_dict().items())
    phases = [run.folder.source(0)] if method == "actor-mimic" else []
    logged = [
        {name for row in read_metrics(path / "metrics.csv") for name in row} for path in (*phases, run.folder.path)
    ]
    expected = {
        "progressive": [(False, True)],
        "policy-distillation": [(True, False)],
        "actor-mimic": [(True, False), (False, True)],
    }
    assert [("losses/distillation" in names, "losses/policy" in names) for names in logged] == expected[method]
    student = load_agent(run.folder.student).net
    assert len(student(torch.zeros(1, 4, 84, 84, dtype=torch.uint8))[0][0]) == 18


def test_workers_share_the_guide_of_the_hand_over_and_a_checkpoint_holds_it(tmp_path: Path) -> None:
    settings = TrainConfig(
        game="Seaquest",
        teachers="zoo:seaquest",
        steps=1000,
        workers=2,
        envs_per_worker=2,
        convs=((4, 8, 8), (4, 4, 2)),
        hidden=8,
        flow=FlowConfig(handover_start=0.2, independence_at=1.0),
        curve_points=0,
        eval_episodes=0,
        run_dir=tmp_path / "run",
    )
    run = resolve(settings)
    run.folder.write_config(run.config)
    trainer = ENGINES["a3c"](run, Silent(), None)
    assert trainer.train().failure is None
    net = trainer.net
    assert isinstance(net, GuidedFlow)
    assert net.guided
    assert net.guide.count_nonzero() > 1000
    # Taken when a fifth of the updates were made: on the way, and before the end.
    assert not torch.equal(net.guide, trainer.shared.parameters)
    again = ENGINES["a3c"](run, Silent(), latest_checkpoint(run.folder.checkpoints)).net
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name].nan_to_num(), tensor.nan_to_num()), name
