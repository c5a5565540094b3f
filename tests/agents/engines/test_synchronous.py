"""Real, short runs of the synchronous engines."""

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from torch import nn

from agents.config import TrainConfig
from agents.engines.optimisers import RMSpropTF, SharedAdam
from agents.engines.registry import ENGINES
from agents.engines.settings import PPOConfig
from agents.engines.update import Report
from agents.engines.worker import _train
from agents.launch import Session
from agents.methods.knowledge_flow import KnowledgeFlowMethod
from agents.run import Run, resolve
from agents.teachers.formats import Card, load_agent, save_agent
from agents.teachers.store import ZOO
from envs.atari import Episode, action_set
from envs.protocols import get_protocol
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.training.status import Status
from kfrl.training.trainer import Outcome

pytestmark = pytest.mark.slow

SMALL = {"envs_per_worker": 2, "steps": 128, "curve_points": 0, "eval_episodes": 0}
PPO = PPOConfig(epochs=2, batch_size=16)
FOLDED = {
    "convs": ((4, 8, 8), (4, 4, 2)),
    "hidden": 8,
    "steps": 1_400,
    "methods": {
        "knowledge-flow": {
            "fold_at": 0.1,
            "fold_observations": 160,
            "imitate": "always",
            "imitation_steps": 200,
            "imitation_memory": 4_000,
        }
    },
}
"""Knowledge Flow through all of its phases: 896 of its steps are play for the choice of channels, made short, and
for the fold."""
SMALL_PATHNET = {
    "modules": 3,
    "active_modules": 2,
    "module_convs": ((2, 8, 8),),
    "module_units": 8,
    "population": 4,
    "tournament_episodes": 2,
}


class Silent:
    """Shows nothing; calls back on the way."""

    def __init__(self, on_update: Callable[[], None] = lambda: None) -> None:
        self.on_update = on_update

    def update(self, status: Status) -> None:
        self.on_update()

    def say(self, text: str) -> None:
        pass


def prepare(folder: Path, algo: str, **settings: object) -> Run:
    config = TrainConfig(algo=algo, ppo=PPO, run_dir=folder, **({"game": "Pong"} | SMALL | settings))
    return Session.start(TrainConfig(**{**vars(config), "t_max": config.t_max or (16 if algo == "ppo" else 5)})).run


def train(run: Run) -> Outcome:
    return ENGINES[run.config.algo](run, Silent(), None).train()


def weights(outcome: Outcome) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in outcome.net.parameters()])


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(algo: str, tmp_path: Path) -> None:
    one, same, other = (
        weights(train(prepare(tmp_path / str(index), algo, seed=seed))) for index, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


class Rates:
    """Notes the learning rates that reach the optimiser, in place of `push`; it changes nothing."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def push(self, grads: torch.Tensor, lr: float) -> float:
        self.seen.append(lr)
        return 1.0


NOISE = {"game": "Breakout", "lr": 0.5, "convs": ((4, 8, 8),), "hidden": 8}
LINEAR = [0.5, 0.375, 0.25, 0.125]
"""A rate of 0.5 in the four rollouts of a run: it falls to 0 in a straight line."""


@pytest.mark.parametrize(("algo", "updates"), [("a2c", 1), ("acktr", 1), ("ppo", 4)])
def test_the_learning_rate_falls_to_nothing_in_a_straight_line(
    algo: str, updates: int, tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = Rates()
    monkeypatch.setattr(ENGINES[algo], "optimiser", lambda trainer: rates)
    monkeypatch.setattr("agents.engines.acktr.ACKTRTrainer._observe", lambda *given: None)
    train(prepare(tmp_path / "run", algo, **NOISE, t_max=16))
    assert rates.seen == [rate for rate in LINEAR for _ in range(updates)]


def test_the_learning_rate_of_an_a3c_worker_falls_with_the_steps_of_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker_here: None
) -> None:
    rates = Rates()
    monkeypatch.setattr("agents.engines.worker.SharedAdam", lambda *given: rates)
    trainer = ENGINES["a3c"](prepare(tmp_path / "run", "a3c", **NOISE, workers=2, t_max=16), Silent(), None)
    trainer.shared.steps[2] = 64  # by the other worker
    ours, theirs = Pipe(duplex=False)
    with ours, theirs:
        _train(trainer._job(0), theirs)
    assert rates.seen == LINEAR[2:]


@pytest.fixture
def short_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.methods.knowledge_flow.CHOICE_OBSERVATIONS", 64)


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
@pytest.mark.usefixtures("short_choice")
def test_knowledge_flow_runs_on_it_and_ends_independent_with_its_teacher_unchanged(algo: str, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", algo, teachers=str(ZOO / "seaquest.safetensors"), **FOLDED)
    (teacher,) = run.teachers
    before = {name: tensor.clone() for name, tensor in teacher.net.state_dict().items()}
    outcome = train(run)
    assert outcome.failure is None
    assert run.method().independent(outcome.net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.net.state_dict().items())
    rows = read_metrics(run.folder.metrics)
    assert any("losses/imitation" in row and "losses/policy" not in row for row in rows)
    assert 0.0 < rows[-1]["fold/r2/conv1"] <= 1.0
    assert {"losses/policy", "losses/value", "losses/entropy", "losses/policy_kl"} <= rows[-1].keys()


@pytest.mark.usefixtures("short_choice")
def test_a_fold_that_is_interrupted_costs_no_steps_because_it_is_played_again(tmp_path: Path) -> None:
    class Interrupting(Silent):
        def say(self, text: str) -> None:
            if text.startswith("Folded conv1"):
                trainer.stop(signal.SIGINT)

    run = prepare(tmp_path / "run", "a2c", teachers=str(ZOO / "seaquest.safetensors"), **FOLDED)
    trainer = ENGINES["a2c"](run, Interrupting(), None)
    for _ in range(2):
        stopped = trainer.train()
        assert stopped.stopped_by == signal.SIGINT
        # 256 steps for the choice of channels and the linked phase, without the 640 of the fold.
        assert stopped.step <= 256 + trainer.run.phases[0].steps + 10
        trainer = ENGINES["a2c"](run, Interrupting(), latest_checkpoint(run.folder.checkpoints))
    outcome = ENGINES["a2c"](run, Silent(), latest_checkpoint(run.folder.checkpoints)).train()
    assert 1_400 <= outcome.step <= 1_400 + 3 * 10


@pytest.mark.usefixtures("short_choice")
def test_features_are_brought_to_the_students_scale_when_a_run_begins_and_not_again(tmp_path: Path) -> None:
    def scales(net: nn.Module, layer: str) -> list[float]:
        return net.get_buffer(f"flow.scales.{layer}").tolist()

    flow = {"fold_at": None, "match_scales": True}
    of_seaquest = {"game": "Seaquest", "teachers": "zoo:seaquest", "steps": 384}
    run = prepare(tmp_path / "run", "a2c", **of_seaquest, methods={"knowledge-flow": flow})
    outcome = train(run)
    own, seaquest = scales(outcome.net, "fc")
    assert own == 1.0
    assert 0.0 < seaquest < 0.5, "a trained net's features are far larger than a fresh one's"
    assert scales(outcome.net, "policy") == scales(outcome.net, "value") == [1.0, 1.0]
    resumed = ENGINES["a2c"](run, Silent(), latest_checkpoint(run.folder.checkpoints))
    assert scales(resumed.net, "fc") == [own, seaquest]
    unmatched = prepare(
        tmp_path / "other",
        "a2c",
        **of_seaquest,
        methods={"knowledge-flow": {**flow, "match_scales": False}},
    )
    assert scales(train(unmatched).net, "fc") == [1.0, 1.0]


@pytest.mark.parametrize(
    ("method", "algo"),
    [
        ("fine-tune", "a2c"),
        ("progressive", "a2c"),
        ("progressive", "ppo"),
        ("policy-distillation", "a2c"),
        ("policy-distillation", "ppo"),
        ("actor-mimic", "a2c"),
    ],
)
def test_a_method_with_a_teacher_learns_leaves_it_unchanged_and_goes_on(
    method: str, algo: str, tmp_path: Path, obs: torch.Tensor
) -> None:
    run = prepare(tmp_path / "run", algo, game="Seaquest", teachers="zoo:seaquest", method=method)
    before = run.method().export(run.method().build(run.spec, run.teachers)).state_dict()
    outcome = train(run)
    assert outcome.failure is None
    assert outcome.step >= 128
    fresh = load_agent(ZOO / "seaquest.safetensors").net.state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in run.teachers[0].net.state_dict().items())
    student = run.method().export(outcome.net)
    assert not torch.equal(student.state_dict()["conv1.weight"], before["conv1.weight"])
    alone = load_agent(run.folder.student).net
    assert torch.equal(alone(obs)[0], student(obs)[0])
    resumed = ENGINES[algo](run, Silent(), latest_checkpoint(run.folder.checkpoints))
    assert (resumed.step, resumed.source_steps) == (outcome.step, outcome.source_steps)
    assert all(torch.equal(a, b) for a, b in zip(resumed.net.parameters(), outcome.net.parameters(), strict=True))
    # Rewards do not count where a teacher is imitated.
    assert ("losses/policy" in read_metrics(run.folder.metrics)[-1]) == (method != "policy-distillation")


def test_an_update_of_ppo_makes_its_epochs_and_minibatches(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", "ppo")
    outcome = train(run)
    # 128 steps are 4 rollouts of 2 x 16, each 2 epochs of 2 minibatches.
    assert outcome.step == 128
    assert latest_checkpoint(run.folder.checkpoints).state["updates"] == 16


def test_a_signal_stops_it_with_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", "a2c", steps=1_000_000)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    outcome = ENGINES["a2c"](run, Silent(interrupt), None).train()
    assert outcome.stopped_by == signal.SIGINT
    checkpoint = latest_checkpoint(run.folder.checkpoints)
    assert checkpoint.state["global_step"] == outcome.step > 0
    resumed = ENGINES["a2c"](run, Silent(), checkpoint)
    assert resumed.shared.global_step == outcome.step
    torch.testing.assert_close(resumed.shared.exp_avg_sq, _statistics(checkpoint.prefixed("exp_avg_sq."), resumed.net))
    assert not (resumed.shared.exp_avg_sq == 1.0).all()


@pytest.mark.parametrize("algo", ["a3c", "ppo"])
def test_a_resumed_run_goes_on_with_the_optimiser_and_the_counters_of_its_checkpoint(algo: str, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", algo, workers=1)
    trainer = ENGINES[algo](run, Silent(), None)
    for statistics in (trainer.shared.exp_avg, trainer.shared.exp_avg_sq):
        statistics.uniform_(1.0, 2.0)
    trainer.shared.updates[0], trainer.shared.dropped[0], trainer._elapsed = 7, 3, 1_000.0
    trainer.save()
    checkpoint = latest_checkpoint(run.folder.checkpoints)
    resumed = ENGINES[algo](run, Silent(), checkpoint)
    for name in ("exp_avg", "exp_avg_sq"):
        saved, restored = (_statistics(checkpoint.prefixed(f"{name}."), resumed.net), getattr(resumed.shared, name))
        assert torch.equal(restored, saved)
        assert restored.min() >= 1.0
    assert (int(resumed.shared.updates.sum()), int(resumed.shared.dropped.sum())) == (7, 3)
    assert resumed.elapsed_sec >= checkpoint.state["elapsed_sec"] >= 1_000.0


@pytest.fixture
def pongs(tmp_path: Path) -> Path:
    """An expert of Pong with 9 points under the rules `paper`."""
    net = AtariNet(6, ((4, 8, 8), (4, 4, 2)), 8)
    rules = get_protocol("paper", "pong")
    evaluation = {"mean": 9.0, "protocol": rules.to_dict()}
    card = Card("pong", action_set(rules), net.arch, evaluation=evaluation)
    save_agent(tmp_path / "pong.safetensors", net, card)
    return tmp_path / "pong.safetensors"


@pytest.mark.parametrize("algo", ["a3c", "a2c"])
def test_a_resumed_run_knows_how_far_its_lone_student_is_behind(
    algo: str, tmp_path: Path, pongs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = {**FOLDED["methods"]["knowledge-flow"], "choose_channels": False}
    settings = {**FOLDED, "steps": 4_000, "methods": {"knowledge-flow": flow}}
    run = prepare(tmp_path / "run", algo, workers=1, teachers=str(pongs), **settings)
    trainer = ENGINES[algo](run, Silent(), None)
    trainer.take(Report("pong", [Episode(0, 9.0, 1, False)]))
    trainer._enter(2)
    trainer.take(Report("pong", [Episode(0, -6.0, 1, False)]))
    trainer.save()
    resumed = ENGINES[algo](run, Silent(), latest_checkpoint(run.folder.checkpoints))
    behind: list[float] = []

    class NoPlay(ChildProcessError):
        pass

    def collector(method: KnowledgeFlowMethod, *rest: object) -> None:
        behind.append(method._shortfall.share())
        raise NoPlay

    if algo == "a3c":
        monkeypatch.setattr("agents.engines.worker._collector", collector)
        with pytest.raises(NoPlay):
            _train(resumed._job(0), None)
    else:
        behind.append(resumed.method._shortfall.share())
    # Random play has -20.7 points; the games of the earlier phase do not count.
    assert behind == [pytest.approx(15.0 / 29.7)]


@pytest.mark.parametrize(
    ("settings", "then"),
    [
        ({"algo": "a3c"}, (SharedAdam, 1e-8)),
        ({"algo": "a3c", "optimizer": "rmsprop"}, (RMSpropTF, 0.1)),
        ({"algo": "a2c"}, (RMSpropTF, 1e-5)),
        ({"algo": "ppo"}, (SharedAdam, 1e-5)),
    ],
    ids=["a3c", "a3c by rmsprop", "a2c", "ppo"],
)
def test_the_imitation_is_by_adam_and_the_learning_alone_by_the_algorithms_own_optimiser(
    settings: dict[str, str], then: tuple[type, float], tmp_path: Path, pongs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimisers: list[SharedAdam | RMSpropTF] = []

    class Ready(Exception):
        pass

    def updater(method: object, net: object, shared: object, grads: object, optimiser: SharedAdam, rank: int) -> None:
        optimisers.append(optimiser)
        raise Ready

    for module in ("synchronous", "worker"):
        monkeypatch.setattr(f"agents.engines.{module}.Updater", updater)
    flow = {"fold_observations": 0, "choose_channels": False, "imitation_steps": 64, "imitation_memory": 64}
    taught = {"teachers": str(pongs), "methods": {"knowledge-flow": flow}}
    run = prepare(tmp_path / "run", workers=1, **settings, **taught)
    trainer = ENGINES[run.config.algo](run, Silent(), None)
    assert [phase.title for phase in trainer.phases] == ["imitation", "alone"]
    for index in range(2):
        trainer._enter(index)
        with pytest.raises(Ready):
            _train(trainer._job(0), None) if run.config.algo == "a3c" else trainer._learn()
    assert [(type(optimiser), optimiser._eps) for optimiser in optimisers] == [(SharedAdam, 1e-8), then]


def _statistics(named: dict[str, torch.Tensor], net: torch.nn.Module) -> torch.Tensor:
    """In the flat model's order and layout: four dimensions are channels_last."""
    parts = [named[name] for name, _ in net.named_parameters()]
    return torch.cat([part.permute(0, 2, 3, 1).flatten() if part.dim() == 4 else part.flatten() for part in parts])


def test_endless_non_finite_gradients_end_the_run_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.engines.update.MAX_CONSECUTIVE_DROPS", 3)
    run = prepare(tmp_path / "run", "a2c", steps=1_000, value_loss_coef=1e300)
    outcome = train(run)
    assert outcome.failure is not None
    assert outcome.failure.startswith("3 updates in a row had a non-finite gradient")
    assert "--resume" not in outcome.failure_and_advice("kfrl train --resume run")
    assert latest_checkpoint(run.folder.checkpoints).state["dropped"] == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algo": "a2c", "workers": 4}, ["one learner", "--workers 4", "--envs-per-worker"]),
        ({"algo": "a3c", "device": "cuda"}, ["shared memory", "--algo a2c"]),
        ({"algo": "a2c", "device": "cuda:77"}, ["cuda:77", "Devices here: cpu"]),
        ({"algo": "a2c", "device": "gpu"}, ["'gpu'", "cpu, cuda or cuda:N"]),
        (
            {"algo": "ppo", "envs_per_worker": 8, "ppo": PPOConfig(batch_size=300)},
            ["300", "8 games x 128 steps = 1,024", "128, 256, 512"],
        ),
    ],
)
def test_settings_that_do_not_fit_the_engine_are_refused(
    settings: dict[str, object], said: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        resolve(TrainConfig(game="Pong", run_dir=tmp_path / "run", **settings))
    for part in said:
        assert part in str(error.value)
    assert not (tmp_path / "run").exists()


def test_looking_at_a_run_changes_nothing_in_it(tmp_path: Path) -> None:
    # PathNet counts its rollouts, and its export is a net that is built anew.
    settings = {
        "method": "pathnet",
        "source_games": "freeway",
        "source_steps": 64,
        "methods": {"pathnet": SMALL_PATHNET},
    }
    watched, unwatched = (prepare(tmp_path / name, "a2c", **settings) for name in ("watched", "unwatched"))

    def look() -> None:
        for _ in range(5):
            trainer.student()
            trainer._method_metrics()

    trainer = ENGINES["a2c"](watched, Silent(look), None)
    assert torch.equal(weights(trainer.train()), weights(train(unwatched)))


@pytest.mark.usefixtures("short_choice")
def test_a_finished_run_that_is_resumed_for_its_scores_is_independent(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", "a2c", teachers="zoo:seaquest", **FOLDED)
    train(run)
    trainer = ENGINES["a2c"](run, Silent(), latest_checkpoint(run.folder.checkpoints))
    outcome = trainer.train()
    assert trainer.method.independent(outcome.net)
    assert set(trainer.method.metrics(outcome.net)) >= {"fold/r2/conv1", "fold/r2/value"}


def test_the_curve_ends_with_the_last_student(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", "a2c", game="Breakout", curve_points=2, curve_episodes=2)
    outcome = train(run)
    points = [row["global_step"] for row in read_metrics(run.folder.metrics) if "eval/mean_return" in row]
    assert points[-1] == outcome.step
