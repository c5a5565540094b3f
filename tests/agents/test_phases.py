"""Runs of several games: their phases, what counts, what is kept, resumed and refused."""

import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agents.batch import Output
from agents.config import TrainConfig
from agents.engines.registry import ENGINES
from agents.engines.worker import _build
from agents.launch import Session
from agents.methods.base import Method, NetSpec, Phase, Play
from agents.run import Run, resolve
from agents.teachers.formats import Teacher, read_card
from agents.teachers.store import find_teacher
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.optim.groups import ParameterGroup
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.training.status import Status
from kfrl.training.trainer import Outcome, Trainer


class Body(nn.Module):
    """A net with a head for each game, which counts the phases that it has been through."""

    passed: Tensor

    def __init__(self, specs: Sequence[NetSpec]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({spec.game: AtariNet(len(spec.actions), ((4, 8, 8),), 8) for spec in specs})
        self.register_buffer("passed", torch.zeros((), dtype=torch.int64))


class InTurn(Method[Body]):
    """Learns each source game, then its own; each has a net of its own, and only one of them trains."""

    takes_sources = "before"

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        steps = self.config.source_steps
        assert steps is not None
        return (*(Phase((source,), steps, source=True) for source in spec.sources), Phase((spec,), self.config.steps))

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> Body:
        self.game = spec.game
        return Body((spec, *spec.sources))

    def end_phase(self, net: Body, play: Play) -> Iterable[str]:
        net.passed += 1
        return ()

    def parameter_groups(self, net: Body) -> list[ParameterGroup]:
        assert net.passed == self.phase
        return [ParameterGroup(tuple(net.nets[self.task.game].parameters()))]

    def forward(self, net: Body, obs: Tensor, context: tuple[Tensor, ...]) -> Output:
        return Output(*net.nets[self.task.game](obs))

    def export(self, net: Body) -> nn.Module:
        return net.nets[self.game]


class Screen:
    """Shows nothing; calls back on the way."""

    def __init__(self, stop_in_phase: int | None = None) -> None:
        self.trainer: Trainer | None = None
        self.stop_in_phase = stop_in_phase
        self.said: list[str] = []
        self.statuses: list[Status] = []

    def update(self, status: Status) -> None:
        self.statuses.append(status)
        if self.trainer is not None and self.trainer.phase_index == self.stop_in_phase and status.done:
            os.kill(os.getpid(), signal.SIGINT)

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def _in_turn(monkeypatch: pytest.MonkeyPatch, noise_games: None) -> None:
    monkeypatch.setattr("agents.run.get_method", lambda name: InTurn)
    monkeypatch.setattr("agents.engines.synchronous.TICK_SECONDS", 0.0)


SETTINGS = TrainConfig(
    game="Breakout",
    method="in-turn",
    source_games="Pong, ms pacman",
    steps=60,
    source_steps=40,
    algo="a2c",
    envs_per_worker=2,
    curve_points=0,
    eval_episodes=0,
)


def prepare(folder: Path, **settings: object) -> Run:
    return Session.start(replace(SETTINGS, run_dir=folder, **settings)).run


def train(run: Run, screen: Screen, *, resume: bool = False) -> tuple[Trainer, Outcome]:
    checkpoint = latest_checkpoint(run.folder.checkpoints) if resume else None
    screen.trainer = ENGINES[run.config.algo](run, screen, checkpoint)
    return screen.trainer, screen.trainer.train()


def test_names_are_resolved_and_action_sets_are_each_games_own(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run")
    assert run.config.source_games == "Pong,MsPacman"
    assert run.config.source_steps == 40
    assert [source.game for source in run.spec.sources] == ["pong", "ms_pacman"]
    assert [len(source.actions) for source in run.spec.sources] == [6, 9]
    assert run.rules(run.spec.sources[0]) == replace(run.protocol, game="pong")
    assert [(phase.games[0].game, phase.steps) for phase in run.phases] == [
        ("pong", 40),
        ("ms_pacman", 40),
        ("breakout", 60),
    ]


def test_source_steps_default_to_the_steps(tmp_path: Path) -> None:
    assert prepare(tmp_path / "run", source_steps=None).config.source_steps == 60


def test_the_folder_is_named_after_the_source_games() -> None:
    run = resolve(SETTINGS)
    assert run.folder.path.parts[:3] == ("runs", "breakout", "in-turn-a2c")
    assert run.folder.path.name.startswith("pong+ms_pacman-s1-")


def test_each_phase_has_its_own_budget_schedule_and_curve_and_only_the_games_own_steps_are_the_runs(
    tmp_path: Path,
) -> None:
    run = prepare(tmp_path / "run")
    screen = Screen()
    trainer, outcome = train(run, screen)
    assert outcome.failure is None
    assert (outcome.step, outcome.source_steps) == (60, 80)
    state = latest_checkpoint(run.folder.checkpoints).state
    assert (state["phase"], state["phase_step"], state["global_step"], state["source_steps"]) == (2, 60, 60, 80)
    rows = read_metrics(run.folder.metrics)
    assert [row["global_step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert rows[1]["charts/episodic_return"] == 8.0
    first = read_metrics(run.folder.source(0) / "metrics.csv")
    assert [row["global_step"] for row in first] == [10, 20, 30, 40]
    assert {name for name in first[1] if "episod" in name} == {"charts/episodes/pong", "charts/episodic_return/pong"}
    for curve, steps in ((rows, 60), (first, 40)):
        for row in curve:
            rate = run.config.shape.lr * (1 - row["global_step"] / steps)
            assert row["charts/learning_rate"] == pytest.approx(rate)
    assert screen.said == ["Phase 2 of 3, MsPacman", "Phase 3 of 3, Breakout"]
    assert screen.statuses[0].part == "1 of 3, Pong"
    assert screen.statuses[0].total == 40
    assert read_card(run.folder.student).steps == 60
    # The optimiser of the last phase knows nothing of those before.
    assert float(trainer.shared.adam_steps[0]) == 6


def test_what_a_phase_has_learned_stays_as_it_was(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run")
    fresh = ENGINES["a2c"](run, Screen()).net.state_dict()
    fresh = {name: tensor.clone() for name, tensor in fresh.items()}
    seen: dict[str, dict[str, Tensor]] = {}

    class Watching(Screen):
        def say(self, text: str) -> None:
            assert self.trainer is not None
            seen[text] = {name: tensor.clone() for name, tensor in self.trainer.net.state_dict().items()}

    _, outcome = train(run, Watching())
    (_, after_pong), (_, after_pacman) = seen.items()
    final = outcome.net.state_dict()
    for name, tensor in final.items():
        if name.startswith("nets.pong."):
            assert not torch.equal(tensor, fresh[name]), name
            assert torch.equal(tensor, after_pong[name]), name
        if name.startswith("nets.breakout."):
            assert torch.equal(after_pacman[name], fresh[name]), name
            assert not torch.equal(tensor, fresh[name]), name


@pytest.mark.parametrize("phase", [1, 2])
def test_a_run_goes_on_in_the_phase_in_which_it_was_stopped(phase: int, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run")
    _, stopped = train(run, Screen(stop_in_phase=phase))
    assert stopped.stopped_by == signal.SIGINT
    assert (stopped.step, stopped.source_steps) == ((10, 80) if phase == 2 else (0, 10 + 40 * phase))
    assert run.folder.student.exists() == (phase == 2)
    resumed, outcome = train(run, Screen(), resume=True)
    assert outcome.stopped_by is None
    assert (outcome.step, outcome.source_steps) == (60, 80)
    assert resumed.session == 1
    folder = run.folder.path if phase == 2 else run.folder.source(phase)
    steps = [row["global_step"] for row in read_metrics(folder / "metrics.csv")]
    assert steps == [10, 20, 30, 40, 50, 60][: 6 if phase == 2 else 4]


def test_a_run_that_is_still_in_its_source_games_has_no_student_and_says_so(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run")
    train(run, Screen(stop_in_phase=0))
    with pytest.raises(UserError, match=r"no student yet: it has made no step in its own game.* --resume"):
        find_teacher(str(run.folder.path), tmp_path)


class Together(InTurn):
    """All games at the same time."""

    takes_sources = "beside"

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        return (Phase((spec, *spec.sources), self.config.steps),)


def test_fewer_workers_than_games_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.run.get_method", lambda name: Together)
    for settings in ({"algo": "a3c", "workers": 2}, {"algo": "a2c"}):
        with pytest.raises(
            UserError,
            match=r"learns 3 games at the same time here.*--algo a3c --workers 3 or more, got a[23]c with [12]",
        ):
            prepare(tmp_path / "run", source_steps=None, **settings)
    assert prepare(tmp_path / "run", source_steps=None, algo="a3c", workers=3).config.source_steps is None


def test_by_default_every_game_has_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.run.get_method", lambda name: Together)
    for cores, workers in ((2, 3), (4, 4)):
        monkeypatch.setattr("agents.config.cores", lambda cores=cores: cores)
        made = prepare(tmp_path / str(cores), source_steps=None, algo="a3c", workers=None)
        assert made.config.workers == workers


def test_beside_its_own_game_a_run_counts_steps_in_others_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.run.get_method", lambda name: Together)
    run = prepare(tmp_path / "run", source_steps=None, algo="a3c", workers=4, envs_per_worker=1)
    trainer = ENGINES["a3c"](run, Screen())
    jobs = [trainer._job(rank) for rank in range(4)]
    assert [job.task.game for job in jobs] == ["breakout", "pong", "ms_pacman", "breakout"]
    assert [job.protocol.game for job in jobs] == [job.task.game for job in jobs]
    for rank, job in enumerate(jobs):
        job.counter[1 + rank] += 10 ** (1 + rank)
    assert (trainer.step, trainer.source_steps) == (10 + 10_000, 100 + 1_000)
    # Nothing but the net of its own game trains in this method; the rest is one copy for all.
    assert {name.split(".")[1] for name in jobs[0].fixed if name != "passed"} == {"pong", "ms_pacman"}
    assert all(tensor.is_shared() for tensor in jobs[0].fixed.values())
    copies = [_build(Together(run.config), jobs[0]) for _ in range(2)]
    for name, tensor in trainer.net.state_dict().items():
        same = {copy.state_dict()[name].data_ptr() for copy in copies} == {tensor.data_ptr()}
        assert same == (name in jobs[0].fixed), name


@pytest.mark.parametrize(
    ("takes", "settings", "words"),
    [
        ("none", {}, "takes no --source-games, got 2. --method pathnet learns them before"),
        ("none", {"source_games": ""}, "learns no game before its own, so --source-steps 40 has no effect"),
        ("beside", {}, "learns no game before its own, so --source-steps 40 has no effect"),
        ("before", {"source_games": ""}, "needs source games: --source-games"),
        ("beside", {"source_games": "", "source_steps": None}, "needs source games: --source-games"),
        ("teachers-before", {}, "got 2: its source games are those of its teachers"),
        ("before", {"source_games": "Pong,Brekout"}, "Did you mean 'Breakout'"),
        ("before", {"source_games": "Pong,breakout"}, "Breakout is the run's own game"),
        ("before", {"source_games": "Pong,pong"}, "Pong is given twice"),
    ],
)
def test_source_games_that_do_not_fit_are_refused_and_nothing_is_written(
    takes: str, settings: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InTurn, "takes_sources", takes)
    with pytest.raises(UserError, match=words):
        prepare(tmp_path / "run", **settings)
    assert list(tmp_path.iterdir()) == []
