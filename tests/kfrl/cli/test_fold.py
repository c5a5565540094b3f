"""`kfrl fold` on runs of every kind."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from agents.config import TrainConfig
from agents.folding import LinkedRun
from agents.launch import Session
from agents.teachers.formats import Card, load_agent, save_agent
from kfrl.cli.main import main
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import latest_checkpoint, save_checkpoint

PONG = ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")


@pytest.fixture
def linked_run(tmp_path: Path, short_games: None, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """An interrupted run in `run`, linked throughout; the net that its checkpoint holds."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    convs = ((4, 8, 8), (4, 4, 2))
    teacher = AtariNet(6, convs, 8)
    save_agent(tmp_path / "pong.safetensors", teacher, Card(game="pong", actions=PONG, arch=teacher.arch))
    flow = {"fold_at": None, "choose_channels": False, "student_weight": 0.3}
    teachers = str(tmp_path / "pong.safetensors")
    config = TrainConfig(
        game="Pong",
        teachers=teachers,
        run_dir=Path("run"),
        steps=1000,
        convs=convs,
        hidden=8,
        methods={"knowledge-flow": flow},
    )
    run = Session.start(config).run
    net = run.method().build(run.spec, run.teachers)
    nn.init.normal_(net.flow.student.policy.weight)
    save(net, run.folder.checkpoints)
    return net


def save(net: nn.Module, directory: Path, **state: object) -> None:
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    save_checkpoint(directory, 500, tensors, {"global_step": 500, "phase": 0, **state})


def screens(protocol: object, count: int, policy: object, seed: int) -> torch.Tensor:
    """Noise in the place of the linked student's play."""
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8)


def test_an_interrupted_run_is_folded_into_a_plain_agent(
    linked_run: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fold", "run", "--observations", "640", "--episodes", "1"]) == 0
    said = capsys.readouterr().out
    assert "Folded conv1 R2 1.000" in said
    assert "with its teachers' links" in said
    assert "folded, alone" in said
    agent = load_agent(Path("run/folded.safetensors"))
    # The run's steps, and four for each observation.
    assert (agent.card.steps, agent.card.game) == (500 + 4 * 640, "pong")
    lines = [line for line in said.splitlines() if line.startswith("Folded ")]
    assert [line.split()[1] for line in lines] == ["conv1", "conv2", "fc", "policy", "value"]
    assert agent.card.notes == "; ".join(lines)
    plain = AtariNet(6, ((4, 8, 8), (4, 4, 2)), 8)
    plain.load_state_dict(agent.net.state_dict())
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    # Student and teacher have a first layer of one kernel and stride, so that it folds exactly.
    torch.testing.assert_close(
        plain.get_submodule("conv1")(obs / 255), linked_run.flow.mixture("conv1", obs), atol=0.2, rtol=0.01
    )
    # The run itself stays as it was.
    assert not Path("run/student.safetensors").exists()


def test_a_finished_run_is_folded_into_a_plain_agent(
    linked_run: nn.Module, noise_games: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agents.folding.observe", screens)
    flags = (
        "--algo a2c --workers 1 --envs-per-worker 2 --t-max 5 --steps 40 --lr 0.1 --curve-points 0 --eval-episodes 0"
    )
    assert main(["train", "--config", "run/config.yaml", *flags.split(), "--run-dir", "finished"]) == 0
    student = load_agent(Path("finished/student.safetensors"))
    assert student.card.caveat.startswith("Warning: this student is not independent")
    assert main(["fold", "finished", "--observations", "640", "--episodes", "0"]) == 0
    assert "Folded conv1 R2 1.000" in capsys.readouterr().out
    agent = load_agent(Path("finished/folded.safetensors"))
    assert (agent.card.steps, agent.card.caveat) == (40 + 4 * 640, "")
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    before = linked_run.flow.mixture("conv1", obs)
    latest_checkpoint(Path("finished/checkpoint")).load_net(linked_run)
    folded, alone = (part.net.get_submodule("conv1")(obs / 255) for part in (agent, student))
    torch.testing.assert_close(folded, linked_run.flow.mixture("conv1", obs), atol=0.01, rtol=0.01)
    assert min((folded - other).abs().max() for other in (before, alone)) > 0.1


def test_too_few_observations_are_refused_before_the_play_with_a_number_that_is_enough(
    linked_run: nn.Module, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fully connected layer has 4 x 4 x 4 inputs and an intercept: 65 of four fifths of the observations.
    with monkeypatch.context() as patched:
        patched.setattr("agents.folding.observe", lambda *game: pytest.fail("it has played"))
        assert main(["fold", "run", "--observations", "81", "--episodes", "0"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "--observations 81 gives 81 observations: too few for a fold, because layer fc has more unknowns. It needs 82"
        in said
    )
    assert not Path("run/folded.safetensors").exists()
    assert main(["fold", "run", "--observations", "82", "--episodes", "0"]) == 0


def test_an_independent_student_is_refused(linked_run: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    for r2 in linked_run.fold_r2.buffers():
        r2.fill_(1.0)
    save(linked_run, Path("run/checkpoint"))
    assert main(["fold", "run"]) == 2
    assert "run is independent already" in capsys.readouterr().err


def test_a_checkpoint_of_another_teacher_file_is_refused(
    linked_run: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    save(linked_run, Path("run/checkpoint"), teacher_sha256=["abc"])
    assert main(["fold", "run", "--observations", "640", "--episodes", "0"]) == 2
    assert "checkpoint step-000000000500.safetensors says abc" in capsys.readouterr().err.replace("\n", " ")
    assert not Path("run/folded.safetensors").exists()


def test_the_teachers_that_a_pool_has_linked_are_folded(tmp_path: Path, linked_run: nn.Module) -> None:
    config = Session.resume(Path("run")).run.config
    pool = {**config.methods["knowledge-flow"], "linked_teachers": 1, "review_every": 100}
    teachers = ",".join(2 * [str(tmp_path / "pong.safetensors")])
    config = replace(config, teachers=teachers, teacher_sha256=(), run_dir=Path("pooled"))
    run = Session.start(replace(config, methods={"knowledge-flow": pool})).run
    net = run.method().build(run.spec, run.teachers)
    assert net.flow.absent == {"pong-2"}
    net.pool.linked.logical_not_()
    save(net, run.folder.checkpoints)
    assert LinkedRun(Path("pooled")).net.flow.absent == {"pong"}


def test_a_run_on_images_is_named_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "config.yaml").write_text("data: digits\n")
    assert main(["fold", str(tmp_path / "images")]) == 2
    assert "is a run on images. The commands for it are those of `kfrl supervised`" in " ".join(
        capsys.readouterr().err.split()
    )


def test_the_fold_is_on_other_games_than_the_score(linked_run: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def observe(protocol: object, count: int, policy: object, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return screens(protocol, count, policy, seed)

    monkeypatch.setattr("agents.folding.observe", observe)
    linked = LinkedRun(Path("run"))
    linked.fold(640, lambda line: None)
    assert len(seeds) == 1
    assert seeds != [linked.run.final_seed]


def test_a_run_without_teachers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Session.start(TrainConfig(game="Pong", run_dir=Path("run")))
    assert main(["fold", "run"]) == 2
    assert "was trained by a3c, which has no links" in capsys.readouterr().err.replace("\n", " ")
