"""Real, short runs of worker processes with frozen teachers."""

from pathlib import Path

import pytest
import torch

from agents.config import TrainConfig
from agents.engines.registry import ENGINES
from agents.launch import Session
from agents.methods.knowledge_flow import FlowNet
from agents.teachers.formats import Card, load_agent, save_agent
from agents.teachers.store import ZOO
from envs.atari import action_set
from envs.protocols import get_protocol
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.training.status import Status

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
    run = Session.start(settings).run
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


def test_a_run_passes_through_all_phases_and_a_checkpoint_holds_what_is_imitated(tmp_path: Path) -> None:
    expert = AtariNet(18, ((4, 8, 8), (4, 3, 1)), 8)
    actions = action_set(get_protocol("paper", "seaquest"))
    save_agent(tmp_path / "seaquest.safetensors", expert, Card("seaquest", actions, expert.arch))
    settings = TrainConfig(
        game="Seaquest",
        teachers=str(tmp_path / "seaquest.safetensors"),
        steps=3_600,
        workers=2,
        envs_per_worker=2,
        convs=((4, 8, 8), (4, 4, 2)),
        hidden=8,
        methods={
            "knowledge-flow": {
                "fold_at": 0.2,
                "fold_observations": 160,
                "imitation_steps": 300,
                "imitation_memory": 4_000,
            }
        },
        curve_points=0,
        eval_episodes=0,
        run_dir=tmp_path / "run",
    )
    run = Session.start(settings).run
    trainer = ENGINES["a3c"](run, Silent(), None)
    outcome = trainer.train()
    assert outcome.failure is None
    assert outcome.step >= 3_600
    net = trainer.net
    assert isinstance(net, FlowNet)
    rows = [row for row in read_metrics(run.folder.metrics) if "charts/grad_norm" in row]
    assert [row["global_step"] for row in rows] == sorted(row["global_step"] for row in rows)
    # In turn p of the linked student, the imitation without rewards, and rewards without teachers.
    kinds = [("flow/p_student/fc" in row, "losses/imitation" in row, "losses/policy" in row) for row in rows]
    assert list(dict.fromkeys(kinds)) == [(True, False, True), (False, True, False), (False, False, True)]
    # 2,048 steps of play before the linked phase and 640 after it count.
    linked = [row["global_step"] for row, kind in zip(rows, kinds, strict=True) if kind[0]]
    imitated = [row["global_step"] for row, kind in zip(rows, kinds, strict=True) if kind[1]]
    assert linked[0] > 2_048
    assert imitated[0] > linked[-1] + 640
    checkpoint = latest_checkpoint(run.folder.checkpoints)
    again = ENGINES["a3c"](run, Silent(), checkpoint)
    assert again.step == outcome.step
    assert isinstance(again.net, FlowNet)
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor), name
    student = load_agent(run.folder.student).net
    assert all(torch.equal(net.alone.state_dict()[name], tensor) for name, tensor in student.state_dict().items())
