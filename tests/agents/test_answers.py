"""Teachers' answers in a file: what is in it, who learns from it, and whose answers are refused."""

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import agents
from agents.answers import Answers, collect
from agents.config import TrainConfig
from agents.folding import LinkedRun
from agents.launch import Session
from agents.methods.actor_mimic import ActorMimic
from agents.methods.base import NetSpec
from agents.methods.knowledge_flow import KnowledgeFlowMethod
from agents.methods.policy_distillation import PolicyDistillation
from agents.run import reopen, resolve
from agents.teachers.formats import Card, Teacher, load_agent, save_agent
from envs.atari import action_set
from envs.protocols import get_protocol
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.training.session import Silent

PAPER = get_protocol("paper", "breakout")
ACTIONS = action_set(PAPER)
SPEC = NetSpec("breakout", ACTIONS)
SHAPE: dict[str, Any] = {"convs": ((4, 8, 8), (4, 4, 2)), "hidden": 8}


@pytest.fixture
def expert(tmp_path: Path) -> Teacher:
    """Of Breakout, in a file, with its actions in another order than the game's."""
    path = tmp_path / "expert.safetensors"
    actions = (*reversed(ACTIONS), "UP")
    torch.manual_seed(0)
    net = AtariNet(len(actions), ((3, 8, 8), (4, 3, 1)), 6)
    # A fresh policy is nearly uniform, so that there would be little to learn from it.
    nn.init.normal_(net.policy.weight)
    save_agent(path, net, Card("breakout", actions, net.arch))
    return replace(load_agent(path), name="breakout")


@pytest.fixture
def noise_play(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observations are noise; no emulator is started."""

    def play(protocol: object, count: int, policy: Callable[[Tensor], Tensor] | None, seed: int) -> Iterator[Any]:
        noise = np.random.default_rng(seed)
        for _ in range(-(-count // 4)):
            yield noise.integers(0, 256, (4, 4, 84, 84), dtype=np.uint8)

    monkeypatch.setattr("agents.answers.play", play)


def stored(path: Path, *teachers: Teacher, count: int = 10, **more: Any) -> Answers:
    asked = [(teacher, str(teacher.path)) for teacher in teachers]
    assert [*collect(path, PAPER, ACTIONS, asked, count, **more)][-1] == count
    return Answers.open(path)


def test_a_q_network_acts_greedily_while_answers_are_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obs: Tensor
) -> None:
    acting: list[Any] = []

    def play(protocol: object, count: int, policy: object, seed: int) -> Iterator[Any]:
        acting.append(policy)
        yield np.zeros((4, 4, 84, 84), np.uint8)

    monkeypatch.setattr("agents.answers.play", play)
    path = tmp_path / "dqn.safetensors"
    net = AtariNet(len(ACTIONS), ((3, 8, 8), (4, 3, 1)), 6, head="q")
    save_agent(path, net, Card("breakout", ACTIONS, net.arch))
    stored(tmp_path / "a.answers", replace(load_agent(path), name="breakout"), count=4, actor="breakout")
    probabilities = acting[0](obs).softmax(1)
    assert torch.equal(probabilities.argmax(1), net(obs)[0].argmax(1))
    assert probabilities.max(1).values.min() > 0.9, "Q values are not log-probabilities"


def test_the_file_has_what_the_teacher_says_of_what_was_played(tmp_path: Path, expert: Teacher) -> None:
    path = tmp_path / "a.answers"
    file = stored(path, expert, features="all", actor="breakout", seed=3)
    assert file.observations.shape == (10, 4, 84, 84)
    assert len(file.observations.unique(dim=0)) > 1
    assert (file.card.count, file.card.steps, file.card.played_by) == (10, 48, "breakout")
    logits, values = expert.net(file.observations)
    order = [expert.card.actions.index(name) for name in ACTIONS]
    torch.testing.assert_close(file.logits(expert, ACTIONS, torch.tensor([7, 2])), logits[[7, 2]][:, order])
    with safe_open(path, framework="pt") as tensors:
        assert json.loads(tensors.metadata()["card"])["teachers"][0]["sha256"] == expert.sha256
        torch.testing.assert_close(tensors.get_tensor("breakout/values"), values)
    hidden = expert.net.get_submodule("fc")
    seen: list[Tensor] = []
    hidden.register_forward_hook(lambda module, inputs, z: seen.append(z))
    expert.net(file.observations)
    torch.testing.assert_close(file.features(expert, "fc"), seen[0])
    assert [tensor.shape[1:] for tensor in (file.features(expert, "conv1"), file.features(expert, "policy"))] == [
        (3, 10, 10),
        (len(ACTIONS) + 1,),
    ]


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path, expert: Teacher, noise_play: None) -> None:
    work = collect(tmp_path / "half.answers", PAPER, ACTIONS, [(expert, "expert")], 12)
    assert next(work) == 4
    work.close()
    assert [path.name for path in tmp_path.iterdir()] == ["expert.safetensors"]


def test_distillation_learns_from_the_file_what_the_teacher_would_say(
    tmp_path: Path, expert: Teacher, noise_play: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path / "a", expert)
    config = TrainConfig(
        "Breakout", answers=str(tmp_path / "a"), methods={"policy-distillation": {"temperature": 0.5}}, **SHAPE
    )
    run = resolve(replace(config, run_dir=tmp_path / "run"))
    (absent,) = run.teachers
    method = PolicyDistillation(run.config)
    net = method.build(run.spec, run.teachers)
    method.begin(net, 0, run.spec, rank=0)
    rows = torch.tensor([4, 4, 9])
    file = Answers.open(tmp_path / "a")
    (targets,) = method.stored(file, rows)
    live = PolicyDistillation(replace(config, answers=""))
    live.begin(live.build(SPEC, [expert]), 0, SPEC, rank=0)
    torch.testing.assert_close(targets, live.features(net, file.observations[rows])[0])
    with pytest.raises(UserError, match="not its net"):
        absent.net(file.observations)


def test_a_run_from_a_file_plays_nothing_and_needs_no_teacher(
    tmp_path: Path, expert: Teacher, noise_play: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path / "a", expert)
    expert.path.unlink()
    monkeypatch.setattr("agents.engines.synchronous.AtariEnvs", None)
    settings = {
        **{"game": "Breakout", "answers": str(tmp_path / "a"), "algo": "a2c", "envs_per_worker": 2},
        **{"curve_points": 0, "eval_episodes": 0, "lr": 0.01, **SHAPE},
    }
    # How many rows a run writes depends on its speed, and a row is a mean since the one before.
    agents.train({**settings, "steps": 8, "run_dir": tmp_path / "short"})
    result = agents.train({**settings, "steps": 400, "run_dir": tmp_path / "run"})
    *_, before = _rows(tmp_path / "short", "losses/distillation")
    *_, after = _rows(tmp_path / "run", "losses/distillation")
    assert float(after.split(",")[1]) < 0.75 * float(before.split(",")[1])
    card = load_agent(tmp_path / "run" / "student.safetensors").card
    assert (card.method, card.teachers, card.teacher_sha256) == (
        "policy-distillation-a2c",
        ("breakout",),
        (Answers.open(tmp_path / "a").card.teachers[0].sha256,),
    )
    assert result.folder == tmp_path / "run"
    assert agents.resume(tmp_path / "run").folder == tmp_path / "run"


def _rows(run: Path, column: str) -> Iterator[str]:
    header, *lines = (run / "metrics.csv").read_text().splitlines()
    place = header.split(",").index(column)
    return (f"{line.split(',')[0]},{line.split(',')[place]}" for line in lines if line.split(",")[place])


def test_actor_mimic_gets_the_hidden_activations_too(tmp_path: Path, expert: Teacher, noise_play: None) -> None:
    stored(tmp_path / "a", expert)
    settings: dict[str, Any] = {"game": "Pong", "method": "actor-mimic", "source_steps": 8, "steps": 8, **SHAPE}
    run = resolve(TrainConfig(**settings, answers=str(tmp_path / "a"), run_dir=tmp_path / "run"))
    assert [(phase.stored, phase.games[0].game) for phase in run.phases] == [(True, "breakout"), (False, "pong")]
    method = ActorMimic(run.config)
    net = method.build(run.spec, run.teachers)
    assert net.regressors["breakout"].out_features == 6
    method.begin(net, 0, run.spec.sources[0], rank=0)
    rows, file = torch.tensor([1, 8]), Answers.open(tmp_path / "a")
    live = ActorMimic(TrainConfig(**settings))
    live.begin(live.build(run.spec, [expert]), 0, run.spec.sources[0], rank=0)
    for one, other in zip(method.stored(file, rows), live.features(net, file.observations[rows]), strict=True):
        torch.testing.assert_close(one, other)


def test_a_fold_from_the_file_is_the_fold_with_the_teacher(tmp_path: Path, expert: Teacher, noise_play: None) -> None:
    file = stored(tmp_path / "a", expert, count=100, features="all")
    config = TrainConfig("Breakout", teachers=str(expert.path), answers=str(tmp_path / "a"), steps=100, **SHAPE)
    config = replace(config, run_dir=tmp_path / "run", methods={"knowledge-flow": {"fold_observations": 100}})
    run = resolve(config)
    assert sum(phase.steps for phase in run.phases) == 100
    method = KnowledgeFlowMethod(run.config)
    net = method.build(run.spec, run.teachers)
    kept = net.flow.state_dict()
    fresh = KnowledgeFlowMethod(run.config).build(run.spec, run.teachers)
    fresh.flow.load_state_dict(kept)
    features = file.said(net.flow.taps, {"breakout": run.teachers[0]})
    run.teachers[0].net.register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    lines = list(net.fold(file.observations, features))
    fresh.flow.teachers["breakout"]._forward_pre_hooks.clear()
    assert lines == list(fresh.fold(file.observations))
    for name, tensor in net.alone.state_dict().items():
        torch.testing.assert_close(tensor, fresh.alone.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_knowledge_flow_folds_on_the_file_before_it_plays(
    tmp_path: Path, expert: Teacher, noise_play: None, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path / "a", expert, count=100, features="all")
    monkeypatch.setattr("agents.trainer.observe", None)
    settings = {
        **{"game": "Breakout", "teachers": str(expert.path), "answers": str(tmp_path / "a"), "algo": "a2c"},
        **{"envs_per_worker": 2, "steps": 40, "curve_points": 0, "eval_episodes": 0, "run_dir": tmp_path / "run"},
        **{"flow": {"fold_observations": 100, "imitate": "never"}, **SHAPE},
    }
    session = Session.start(settings)
    session.prepare(Silent())
    assert session.trainer.step == 0
    assert session.trainer.net.folded


def test_kfrl_fold_takes_the_file(
    tmp_path: Path, expert: Teacher, noise_play: None, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        **{"game": "Breakout", "teachers": str(expert.path), "algo": "a2c", "envs_per_worker": 2, "steps": 20},
        **{"curve_points": 0, "eval_episodes": 0, "run_dir": tmp_path / "run", **SHAPE},
        **{"flow": {"fold_at": None, "choose_channels": False}},
    }
    session = Session.start(settings)
    session.prepare(Silent())
    session.trainer.save()
    stored(tmp_path / "a", expert, count=100, features="all")
    monkeypatch.setattr("agents.folding.observe", None)
    lines: list[str] = []
    LinkedRun(tmp_path / "run").fold(100, lines.append, tmp_path / "a")
    folded = [line.split()[1] for line in lines if line.startswith("Folded")]
    assert folded == ["conv1", "conv2", "fc", "policy", "value"]
    # The fully connected layer has 64 inputs and an intercept: 65 of four fifths of the observations.
    stored(tmp_path / "few", expert, count=81, features="all")
    with pytest.raises(UserError, match=r"100 of .*few gives 81 observations: .*layer fc .* It needs 82 or more"):
        LinkedRun(tmp_path / "run").fold(100, lines.append, tmp_path / "few")


def test_answers_of_another_file_of_the_teacher_are_refused(tmp_path: Path, expert: Teacher, noise_play: None) -> None:
    stored(tmp_path / "a", expert)
    with torch.no_grad():
        expert.net.get_parameter("policy.bias").add_(1.0)
    other = tmp_path / "other.safetensors"
    save_agent(other, expert.net, expert.card)
    config = TrainConfig("Breakout", method="policy-distillation", answers=str(tmp_path / "a"), **SHAPE)
    with pytest.raises(UserError, match=rf"SHA-256 {expert.sha256}; that of .*other.*Collect the answers of this file"):
        resolve(replace(config, teachers=str(other)))
    with pytest.raises(UserError, match="SHA-256"):
        resolve(replace(config, method="knowledge-flow", teachers=str(other)))
    assert resolve(replace(config, teachers=str(expert.path))).teachers[0].sha256 == expert.sha256
    with pytest.raises(UserError, match="the config says abc"):
        resolve(replace(config, teacher_sha256=("abc",)))


def test_a_run_goes_on_with_the_answers_that_it_began_with(tmp_path: Path, expert: Teacher, noise_play: None) -> None:
    path = tmp_path / "a"
    began = stored(path, expert).sha256
    config = TrainConfig("Breakout", answers=str(path), run_dir=tmp_path / "run", algo="a2c", curve_points=0, **SHAPE)
    session = Session.start(config)
    assert session.run.config.answers_sha256 == (began,)
    session.prepare(Silent())
    session.trainer.save()
    # The same teacher on other play.
    path.unlink()
    now = stored(path, expert, count=12, seed=5).sha256
    assert now != began
    words = rf"Answers {path}: its SHA-256 is {now}, and the %s says {began}\. Restore .* answers_sha256"
    with pytest.raises(UserError, match=words % "config"):
        reopen(tmp_path / "run")
    with pytest.raises(UserError, match=words % r"checkpoint step-\d+\.safetensors"):
        resolve(config).check_inputs(latest_checkpoint(tmp_path / "run" / "checkpoint"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"game": "Pong"}, "No teacher plays pong"),
        ({"protocol": "machado"}, "under the rules of paper, and the run has those of machado. Collect again"),
        ({"method": "a3c"}, "Method a3c does not use --answers. policy-distillation"),
        ({"method": "actor-mimic", "game": "Pong"}, "no features of layer fc of teacher 'breakout', only of none"),
        ({"methods": {"policy-distillation": {"distill_actor": "student"}}}, "no effect with --answers"),
        ({"answers": "expert.safetensors"}, "kfrl-agent-1.*`kfrl collect` writes files of answers"),
        ({"answers": "nowhere"}, "There is no file nowhere"),
        ({"answers": "a,a"}, "one file for each game, got several of breakout"),
        ({"answers": "short"}, "truncated or damaged"),
    ],
)
def test_answers_that_do_not_fit_are_refused(
    tmp_path: Path,
    expert: Teacher,
    noise_play: None,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "a", expert, features="none")
    Path("short").write_bytes(Path("a").read_bytes()[:-100])
    with pytest.raises(UserError, match=words):
        resolve(
            TrainConfig(**{"game": "Breakout", "method": "policy-distillation", "answers": "a", **SHAPE, **settings})
        )


def test_a_full_disk_is_said_before_anything_is_played(
    tmp_path: Path, expert: Teacher, noise_play: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"Could not write .*a: No space left on device"):
        next(collect(tmp_path / "a", PAPER, ACTIONS, [(expert, "expert")], 12))
    assert not (tmp_path / "a").exists()
