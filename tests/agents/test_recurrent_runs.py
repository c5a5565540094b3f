"""Runs with recurrent nets, as students and as teachers: short real ones, what is restored, and what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from agents.config import TrainConfig
from agents.engines.registry import ENGINES
from agents.engines.settings import PPOConfig
from agents.evaluation.play import policy_of
from agents.export import exportable
from agents.launch import Session, linked_policy
from agents.methods import get_method
from agents.methods.base import NetSpec
from agents.methods.fine_tune import FineTune
from agents.methods.knowledge_flow import FlowNet, KnowledgeFlowMethod
from agents.plan import expected_rate, plan_of
from agents.policies import Player
from agents.run import Run, resolve
from agents.teachers.formats import Card, Teacher, load_agent, save_agent
from envs.atari import action_set
from envs.protocols import get_protocol
from kfrl.cli.main import main
from kfrl.errors import UserError
from kfrl.flow import Link
from kfrl.nets.atari.lstm import LSTMNet
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.export import Format
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.training.status import Status
from kfrl.training.trainer import Outcome

SMALL: dict[str, Any] = {"convs": ((4, 8, 8),), "hidden": 8, "curve_points": 0, "eval_episodes": 0}
SHAPES = {
    "a3c": {"workers": 2, "envs_per_worker": 1},
    "a2c": {"envs_per_worker": 2},
    "ppo": {"envs_per_worker": 4, "t_max": 8, "ppo": PPOConfig(epochs=2, batch_size=16)},
}
PONG = NetSpec("pong", ("NOOP", "FIRE", "LEFT"))
LINKED = {"knowledge-flow": {"fold_at": None, "choose_channels": False}}


class Screen:
    """Shows nothing; presses Ctrl-C at the first update if `stops`."""

    def __init__(self, *, stops: bool = False) -> None:
        self.stops = stops

    def update(self, status: Status) -> None:
        if self.stops and status.done:
            os.kill(os.getpid(), signal.SIGINT)

    def say(self, text: str) -> None:
        pass


def prepare(folder: Path, algo: str = "a2c", **settings: object) -> Run:
    held = {"game": "Breakout", "net": "lstm", "steps": 100} | SMALL | SHAPES[algo] | settings
    return Session.start(TrainConfig(algo=algo, run_dir=folder, **held)).run


def train(run: Run, checkpoint: object = None) -> Outcome:
    return ENGINES[run.config.algo](run, Screen(), checkpoint).train()


def weights(outcome: Outcome) -> Tensor:
    return torch.cat([p.detach().flatten() for p in outcome.net.parameters()])


def saved(path: Path, kind: type[AtariNet], game: str = "breakout") -> str:
    """The file of an agent with random weights."""
    actions = action_set(get_protocol("paper", game))
    net = kind(len(actions), ((4, 8, 8),), 8)
    save_agent(path, net, Card(game, actions, net.arch))
    return str(path)


# --- short runs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["a3c", "a2c", "ppo"])
def test_a_run_trains_the_lstm_and_its_student_is_scored(
    algo: str,
    tmp_path: Path,
    short_games: None,
    obs: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = prepare(tmp_path / "run", algo, curve_points=1, curve_episodes=1)
    before = {name: p.detach().clone() for name, p in run.built().net.named_parameters()}
    outcome = train(run)
    assert outcome.failure is None
    moved = {name for name, p in outcome.net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys()
    student = load_agent(run.folder.student)
    assert isinstance(student.net, LSTMNet)
    assert torch.equal(student.net(obs)[0], outcome.net(obs)[0])
    assert main(["eval", "run", "--episodes", "2", "--video", "play.gif"]) == 0
    assert Path("play.gif").stat().st_size
    assert "student alone" in capsys.readouterr().out
    assert main(["teachers", "show", "run"]) == 0
    assert "atari-lstm" in capsys.readouterr().out


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
@pytest.mark.usefixtures("noise_games")
def test_the_same_seed_gives_the_same_weights_and_another_others(algo: str, tmp_path: Path) -> None:
    runs = [prepare(tmp_path / str(at), algo, seed=seed) for at, seed in enumerate((1, 1, 2))]
    one, same, other = (weights(train(run)) for run in runs)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.usefixtures("noise_games")
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", steps=1_000)
    stopped = ENGINES["a2c"](run, Screen(stops=True), None).train()
    assert stopped.stopped_by == signal.SIGINT
    checkpoint = latest_checkpoint(run.folder.checkpoints)
    first, second = (ENGINES["a2c"](run, Screen(), checkpoint) for _ in range(2))
    for name, parameter in first.net.named_parameters():
        assert torch.equal(parameter, checkpoint.tensors[f"net.{name}"]), name
    assert torch.equal(first.shared.exp_avg_sq, second.shared.exp_avg_sq)
    assert not (first.shared.exp_avg_sq == 1.0).all()
    ended = weights(first.train())
    assert torch.equal(ended, weights(second.train()))
    assert not torch.equal(ended, weights(stopped))


@pytest.mark.slow
def test_a_dry_run_measures_it(tmp_path: Path) -> None:
    run = resolve(TrainConfig(game="Breakout", net="lstm", run_dir=tmp_path / "run", **SMALL))
    plan = plan_of(run)
    assert plan.trained == plan.deployed == sum(p.numel() for p in run.built().net.parameters())
    assert expected_rate(run, plan) > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("to", ["onnx", "torchscript", "safetensors"])
def test_an_exported_student_takes_and_gives_its_state(to: Format, tmp_path: Path, obs: Tensor) -> None:
    file = saved(tmp_path / "breakout.safetensors", LSTMNet)
    found = exportable(file, tmp_path)
    path = tmp_path / "exported"
    assert found.write(to, path) < 1e-4
    assert found.about["state"]["shape"] == ["batch", 16]
    if to == "onnx":
        session, net = onnxruntime.InferenceSession(str(path)), load_agent(Path(file)).net
        assert isinstance(net, LSTMNet)
        theirs, ours = np.zeros((2, 16), np.float32), torch.zeros(2, 16)
        for screens in (obs, obs.flip(3)):
            logits, values, theirs = session.run(None, {"input": screens.numpy(), "state": theirs})
            expected, value, ours = net.step(screens, ours)
            torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(torch.from_numpy(values), value, rtol=1e-4, atol=1e-5)


# --- fine-tuning --------------------------------------------------------------------------------------------


def tuned(
    agent: Teacher, *, heads_only: bool = False, net: Literal["feed-forward", "lstm"] = "feed-forward"
) -> AtariNet:
    methods: dict[str, dict[str, Any]] = {"fine-tune": {"heads_only": heads_only}}
    return FineTune(TrainConfig(net=net, methods=methods)).build(PONG, [agent])


def trained_layers(net: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("heads_only", [False, True])
def test_fine_tuning_from_an_lstm_copies_it(heads_only: bool, teacher: Callable[..., Teacher]) -> None:
    agent = teacher(LSTMNet(4, ((4, 8, 8),), 8), ("NOOP", "FIRE", "RIGHT", "LEFT"))
    net = tuned(agent, heads_only=heads_only)
    assert isinstance(net, LSTMNet)
    for layer in ("conv1", "fc", "gates", "recurrence"):
        theirs = agent.net.get_submodule(layer).state_dict()
        assert all(torch.equal(net.get_submodule(layer).state_dict()[name], theirs[name]) for name in theirs), layer
    assert net.policy.out_features == 3
    body = set() if heads_only else {"conv1", "fc", "gates", "recurrence"}
    assert trained_layers(net) == {"policy", "value"} | body


def test_fine_tuning_from_a_feed_forward_teacher_adds_a_new_lstm(teacher: Callable[..., Teacher]) -> None:
    agent = teacher(AtariNet(4, ((4, 8, 8),), 8), ("NOOP", "FIRE", "RIGHT", "LEFT"))
    net = tuned(agent, heads_only=True, net="lstm")
    assert torch.equal(net.fc.weight, agent.net.get_submodule("fc").get_parameter("weight"))
    assert trained_layers(net) == {"gates", "recurrence", "policy", "value"}
    assert type(tuned(agent)) is AtariNet


@pytest.mark.usefixtures("noise_games")
def test_a_fine_tuned_lstm_learns(tmp_path: Path) -> None:
    teachers = saved(tmp_path / "pong.safetensors", LSTMNet, "pong")
    run = prepare(tmp_path / "run", method="fine-tune", net="feed-forward", teachers=teachers)
    before = load_agent(Path(teachers)).net.state_dict()["recurrence.weight"]
    outcome = train(run)
    assert outcome.failure is None
    assert not torch.equal(outcome.net.state_dict()["recurrence.weight"], before)


# --- knowledge flow -----------------------------------------------------------------------------------------


def linked(tmp_path: Path, algo: str = "a2c") -> Run:
    teachers = saved(tmp_path / "breakout.safetensors", AtariNet)
    return prepare(tmp_path / "run", algo, teachers=teachers, methods=LINKED)


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
@pytest.mark.usefixtures("noise_games")
def test_an_lstm_student_is_linked_from_its_convolutions_to_its_heads(algo: str, tmp_path: Path) -> None:
    run = linked(tmp_path, algo=algo)
    outcome = train(run)
    assert outcome.failure is None
    net = outcome.net
    assert isinstance(net, FlowNet)
    assert net.flow.layers == ("conv1", "fc", "policy", "value")
    fresh = run.built().net
    for name in ("flow.student.recurrence.weight", "flow.student.gates.weight", "flow.transforms.1.weight"):
        assert not torch.equal(net.get_parameter(name), fresh.get_parameter(name)), name


def test_a_linked_lstm_student_plays_with_its_links_and_its_states(tmp_path: Path, obs: Tensor) -> None:
    run = linked(tmp_path)
    method, net = run.built().method, run.built().net
    nn.init.orthogonal_(net.flow.student.policy.weight)
    net.flow.set_student_weight(0.5)
    policy = linked_policy(run, net)
    assert policy is not None
    player = Player(policy, 2)
    state = torch.zeros(2, 16)
    with torch.no_grad():
        for screens in (obs, obs.flip(3)):
            played = player.logits(screens, np.arange(2))
            output, state = method.forward_with_state(net, screens, method.features(net, screens), state)
            torch.testing.assert_close(played, output.logits)
        assert not torch.allclose(played, net.flow(obs.flip(3))[0], atol=1e-5), "it has a state"
        alone = Player(policy_of(net.flow.export(), run.spec.actions, run.spec.actions), 2)
        alone.logits(obs, np.arange(2))
        assert not torch.allclose(played, alone.logits(obs.flip(3), np.arange(2)), atol=1e-5), "it has links"


def recurrent_teacher(teacher: Callable[..., Teacher]) -> Teacher:
    return teacher(LSTMNet(3, ((4, 8, 8),), 8), PONG.actions, game="pong")


def flow_of(agent: Teacher, **settings: Any) -> tuple[KnowledgeFlowMethod, FlowNet]:
    held: dict[str, dict[str, Any]] = {"knowledge-flow": {"choose_channels": False, "fold_at": 0.5, **settings}}
    config = TrainConfig(game="Pong", methods=held, convs=SMALL["convs"], hidden=8)
    method = KnowledgeFlowMethod(config)
    return method, method.build(PONG, [agent])


def test_an_lstm_teacher_is_linked_where_its_state_is_not_read(teacher: Callable[..., Teacher], obs: Tensor) -> None:
    agent = recurrent_teacher(teacher)
    method, net = flow_of(agent, link_heads="always")
    assert [(link.student, link.layer) for link in net.flow.links] == [("conv1", "conv1"), ("fc", "fc")]
    assert [phase.title for phase in method.phases(PONG, [agent])] == ["linked", "alone"], "it is not imitated"
    assert "its heads are not" in " ".join(method.notes(net)).lower()
    before = net.flow(obs)[0]
    for layer, reads in {"gates": False, "recurrence": False, "policy": False, "fc": True, "conv1": True}.items():
        with torch.no_grad():
            agent.net.get_submodule(layer).get_parameter("weight").mul_(3.0)
        assert torch.equal(net.flow(obs)[0], before) != reads, layer
        before = net.flow(obs)[0]


def test_channels_of_an_lstm_teacher_are_ranked_by_what_its_gates_read(
    teacher: Callable[..., Teacher], obs: Tensor
) -> None:
    agent = recurrent_teacher(teacher)
    with torch.no_grad():
        agent.net.get_submodule("fc").get_parameter("bias").fill_(10.0)
        agent.net.get_submodule("gates").get_parameter("weight")[:, 1:] = 0.0
    _, net = flow_of(agent)
    net.flow.choose_channels(obs, net.flow.links)
    (q,) = [q for link, q in zip(net.flow.links, net.flow.transforms, strict=True) if link.layer == "fc"]
    assert q.get_parameter("weight").nonzero().tolist() == [[0, 0]]


def test_a_link_that_reads_a_teachers_state_is_refused(teacher: Callable[..., Teacher]) -> None:
    with pytest.raises(UserError, match=r"layer gates of teacher pong depends on the state .* conv1, fc"):
        flow_of(recurrent_teacher(teacher), links=(Link("fc", "pong", "gates"),))


def test_an_lstm_is_a_column_of_a_progressive_net(teacher: Callable[..., Teacher], obs: Tensor, tmp_path: Path) -> None:
    agent = recurrent_teacher(teacher)
    net = get_method("progressive")(TrainConfig(convs=((4, 8, 8),), hidden=8)).build(PONG, [agent])
    save_agent(tmp_path / "net.safetensors", net, Card("pong", PONG.actions, net.arch))
    assert torch.equal(load_agent(tmp_path / "net.safetensors").net(obs)[0], net(obs)[0])


# --- refusals -----------------------------------------------------------------------------------------------

IN_ORDER = r"needs their order. Use --net feed-forward, or one of these methods: a3c, fine-tune, knowledge-flow\."
OWN = """
from agents.batch import Output
from agents.methods.base import Method
from kfrl.nets.atari.net import AtariNet

class Mine(Method):
    def {hook}

METHOD = Mine
"""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algo": "acktr"}, "--algo acktr learns from single observations, .* Use --algo a3c or a2c or ppo"),
        (
            {"algo": "ppo", "envs_per_worker": 4, "ppo": PPOConfig(batch_size=64)},
            "--batch-size 64 is no multiple of the 128 steps .* all games' samples: 128, 256, 512.",
        ),
        (
            {"algo": "ppo", "envs_per_worker": 4, "ppo": PPOConfig(batch_size=100)},
            "--batch-size 100 does not divide .* = 512 samples. The nearest sizes that do: 128, 256, 512.",
        ),
        ({"method": "distral", "source_games": "Pong"}, IN_ORDER),
        ({"method": "pathnet", "source_games": "Pong"}, IN_ORDER),
        ({"method": "policy-distillation", "teachers": "zoo:pong"}, IN_ORDER),
        ({"method": "actor-mimic", "teachers": "zoo:pong"}, IN_ORDER),
        ({"method": "progressive", "teachers": "zoo:pong"}, IN_ORDER),
        ({"teachers": "zoo:pong"}, r"stays linked to all of its teachers: .* Give --fold-at None, or --net feed-forw"),
        (
            {"teachers": "zoo:pong", "methods": {"knowledge-flow": {"fold_at": None, "linked_teachers": 1}}},
            "Give no --linked-teachers, or",
        ),
        (
            {"teachers": "zoo:pong", "methods": {"knowledge-flow": {"fold_at": None, "policy_kl_every": 2}}},
            "Give --policy-kl-every 1, or",
        ),
    ],
)
def test_what_needs_answers_to_single_observations_is_refused(
    settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        resolve(TrainConfig(**{"game": "Pong", "net": "lstm", "run_dir": tmp_path / "run", **SMALL, **settings}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("forward(self, net, obs, context): return Output(*net(obs))", "runs its nets on single"),
        ("build(self, spec, teachers): return AtariNet(len(spec.actions), ((4, 8, 8),), 8)", "builds its own net"),
    ],
)
def test_a_users_method_that_does_not_carry_the_state_is_refused(hook: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(hook=hook))
    with pytest.raises(UserError, match=words):
        resolve(TrainConfig(game="Pong", net="lstm", method=str(file), run_dir=tmp_path / "run", **SMALL))


def test_a_users_method_that_only_adds_losses_carries_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(hook="losses(self, net, batch, progress): return {}"))
    run = resolve(TrainConfig(game="Pong", net="lstm", method=str(file), run_dir=tmp_path / "run", **SMALL))
    assert isinstance(run.built().net, LSTMNet)


@pytest.mark.parametrize("method", ["policy-distillation", "actor-mimic"])
def test_an_lstm_teacher_that_would_be_asked_about_single_observations_is_refused(method: str, tmp_path: Path) -> None:
    teachers = saved(tmp_path / "pong.safetensors", LSTMNet, "pong")
    settings = {"game": "Pong" if method == "policy-distillation" else "Breakout", "method": method}
    with pytest.raises(UserError, match=r"Teacher pong has an LSTM.*: fine-tune, knowledge-flow, progressive\."):
        resolve(TrainConfig(teachers=teachers, run_dir=tmp_path / "run", **SMALL, **settings))


def test_answers_and_a_fold_of_an_lstm_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teachers = saved(tmp_path / "pong.safetensors", LSTMNet, "pong")
    assert main(["collect", "--teachers", teachers, "--output", str(tmp_path / "x.answers")]) == 2
    assert "Collect from feed-forward teachers" in capsys.readouterr().err
    assert not (tmp_path / "x.answers").exists()


@pytest.mark.usefixtures("noise_games")
def test_a_linked_lstm_student_is_not_folded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = linked(tmp_path)
    train(run)
    assert main(["fold", str(run.folder.path)]) == 2
    assert "has a student with an LSTM" in capsys.readouterr().err
