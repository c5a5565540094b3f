"""Teachers that come and go along a run."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents import trainer
from agents.config import TrainConfig
from agents.engines.settings import PPOConfig
from agents.engines.shared import named_views, untrained
from agents.evaluation.paired import returns
from agents.launch import Session
from agents.methods.base import NetSpec
from agents.methods.knowledge_flow import FlowNet, KnowledgeFlowMethod
from agents.reviewing import Terms, review
from agents.run import resolve
from agents.teachers.formats import Card, Teacher, save_agent
from agents.teachers.store import ZOO, load_teachers
from envs.atari import Episode, Transition, identify
from kfrl.errors import UserError
from kfrl.flow import KnowledgeFlow, Link
from kfrl.flow.pool import Change, TeacherPool
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.history import read

SPEC = NetSpec("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"))


def settings(own: dict[str, Any] | None = None, **more: Any) -> TrainConfig:
    flow = {
        "fold_at": None,
        "linked_teachers": 1,
        "review_every": 40,
        "review_games": 2,
        "review_steps": 4,
        "choose_channels": False,
        "student_weight": 0.25,
    }
    given = {"game": "Breakout", "algo": "a2c", "envs_per_worker": 2, "convs": ((4, 8, 8),), "hidden": 8}
    return TrainConfig(**given | more | {"method": "knowledge-flow", "methods": {"knowledge-flow": flow | (own or {})}})


@pytest.fixture
def pool(teacher: Callable[..., Teacher]) -> list[Teacher]:
    return [teacher(AtariNet(4, ((4, 8, 8),), 8), SPEC.actions, game) for game in ("pong", "breakout", "seaquest")]


@pytest.fixture
def noise_everywhere(noise_games: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.engines import synchronous

    monkeypatch.setattr("agents.trainer.AtariEnvs", synchronous.AtariEnvs)


@pytest.fixture
def files(tmp_path: Path) -> str:
    for game in ("pong", "breakout", "seaquest"):
        net = AtariNet(4, ((4, 8, 8),), 8)
        save_agent(tmp_path / f"{game}.safetensors", net, Card(game, SPEC.actions, net.arch))
    return ",".join(str(tmp_path / f"{game}.safetensors") for game in ("pong", "breakout", "seaquest"))


class Screen:
    """Notes what is said; ends the run once a teacher was dropped, if it is to."""

    def __init__(self, session: Session | None = None) -> None:
        self.said: list[str] = []
        self.session = session

    def update(self, status: object) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)
        if self.session is not None and "dropped" in text:
            self.session.trainer.stop(signal.SIGINT)


def changed(method: KnowledgeFlowMethod, net: FlowNet, linked: Sequence[bool]) -> None:
    assert net.pool is not None
    net.pool.linked.copy_(torch.tensor(linked))
    method.schedule(net, 0.0)


def test_the_first_are_linked_and_the_students_weight_is_as_set(pool: list[Teacher]) -> None:
    net = KnowledgeFlowMethod(settings(own={"linked_teachers": 2})).build(SPEC, pool)
    assert net.flow.absent == {"seaquest"}
    weights = net.flow.layer_weights("conv1").tolist()
    assert weights == pytest.approx([0.25, 0.375, 0.375, 0.0])


def test_processes_that_share_what_does_not_train_agree_on_who_teaches(pool: list[Teacher], obs: Tensor) -> None:
    method, worker = (KnowledgeFlowMethod(settings()) for _ in range(2))
    net = method.build(SPEC, pool)
    fixed = untrained(net, method.parameter_groups(net))
    theirs = worker.build(SPEC, pool)
    theirs.load_state_dict(fixed, strict=False, assign=True)
    worker.begin(theirs, 0, SPEC, rank=0)
    assert theirs.flow.absent == {"breakout", "seaquest"}
    changed(method, net, [False, True, False])
    assert theirs.flow.absent == {"breakout", "seaquest"}  # a rollout ends with the teachers that it began with
    worker.schedule(theirs, 0.0)
    assert theirs.flow.absent == {"pong", "seaquest"}
    assert worker.features_of == method.features_of


def test_a_useless_teacher_of_a_pool_is_never_linked(pool: list[Teacher], obs: Tensor) -> None:
    with torch.no_grad():
        for parameter in pool[0].net.parameters():
            parameter.zero_()
    method = KnowledgeFlowMethod(settings(own={"choose_channels": True}))
    net = method.build(SPEC, pool)
    assert net.flow.absent == {"breakout", "seaquest"}
    (line, *_) = method.prepare(net, lambda count, policy=None: obs)
    assert line.startswith("Teacher 'pong' is left out")
    method.begin(net, 0, SPEC, rank=0)
    assert (net.pool.present, net.flow.absent) == (("breakout",), {"pong", "seaquest"})
    assert net.flow.layer_weights("conv1").tolist() == pytest.approx([0.25, 0.0, 0.75, 0.0])


def test_returns_are_of_whole_games_and_the_same_starts_are_paired() -> None:
    class Envs:
        num_envs = 2

        def reset(self, seed: int) -> Any:
            self.step_count, self.seed = 0, seed
            return torch.full((2, 1, 1, 1), seed).numpy()

        def step(self, actions: Any) -> Any:
            self.step_count += 1
            over = (Episode(1, 0.0, 3, False),) if self.step_count == 3 else ()
            obs = torch.full((2, 1, 1, 1), self.step_count).numpy()
            flags = torch.zeros(2, dtype=torch.bool).numpy()
            return Transition(obs, actions.astype("float32"), flags, flags, None, over)

    def play(logits: Tensor, seen: list[Tensor] | None = None) -> list[float]:
        games: Any = Envs()
        game = returns(lambda obs: logits, games, 5, 7, seen)
        while True:
            try:
                next(game)
            except StopIteration as end:
                return list(end.value.tolist())

    certain = torch.tensor([[-100.0, 100.0], [-100.0, 100.0]])
    seen: list[Tensor] = []
    assert play(certain, seen) == [5.0, 3.0]  # game 1 is over after 3 steps, game 0 is cut after 5
    assert [len(obs) for obs in seen] == [2]
    even = torch.zeros(2, 2)
    assert play(even) == play(even)


class PolicyHead(nn.Module):
    """Its bias alone says what it does: action 1 if the bias is above 0, else action 0."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.policy = nn.Linear(1, 2)
        with torch.no_grad():
            self.policy.weight.zero_()
            self.policy.bias.copy_(torch.tensor([-bias, bias]))

    def forward(self, obs: Tensor) -> tuple[Tensor, None]:
        return self.policy(obs.flatten(1).float()), None


class PaidActions:
    """Stands in for `AtariEnvs`: action 1 pays as many points as the seed of the games, and action 0 none."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs

    def reset(self, seed: int) -> Any:
        self.seed = seed
        return np.zeros((self.num_envs, 1), dtype=np.uint8)

    def step(self, actions: Any) -> Transition:
        flags = np.zeros(self.num_envs, dtype=bool)
        return Transition(np.zeros((self.num_envs, 1), dtype=np.uint8), self.seed * actions, flags, flags, None, ())


TERMS = Terms(games=2, steps=4, share=0.05, newcomers=True, seed=7)


@pytest.fixture
def led() -> tuple[KnowledgeFlow, TeacherPool]:
    """A student that earns nothing without its teacher a; b has no say, and c waits."""
    teachers = {"a": PolicyHead(500.0), "b": PolicyHead(0.0), "c": PolicyHead(0.0)}
    links = [Link("policy", name, "policy") for name in teachers]
    flow = KnowledgeFlow(PolicyHead(-100.0), teachers, links, torch.zeros(2, 1))
    with torch.no_grad():
        for transform in flow.transforms:
            transform.weight.copy_(torch.eye(2))
    flow.absent = frozenset("c")
    return flow, TeacherPool(tuple(teachers), 2)


def test_a_review_finds_the_worth_of_each_teacher_in_games_from_the_same_starts(
    led: tuple[KnowledgeFlow, TeacherPool],
) -> None:
    flow, pool = led
    *_, found = review(flow, pool, PaidActions, TERMS, lambda *newcomer: ())
    keys = ("teacher", "linked", "share", "return_with", "return_without", "worth", "useful", "event")
    # 4 steps of 7 points with teacher a.
    assert [tuple(row[key] for key in keys) for row in found.history] == [
        ("a", 1, "0.3333", "28", "0", "1.0000", 1, ""),
        ("b", 1, "0.3333", "28", "28", "0.0000", 0, ""),
        ("c", 0, "", "", "", "", "", ""),
    ]
    assert (pool.mean_worth("a"), pool.mean_worth("b")) == (1.0, 0.0)
    assert flow.absent == {"c"}


def test_what_trains_during_a_review_does_not_change_its_games(led: tuple[KnowledgeFlow, TeacherPool]) -> None:
    flow, pool = led
    games = review(flow, pool, PaidActions, TERMS, lambda *newcomer: ())
    assert next(games) is None
    with torch.no_grad():
        flow.student.policy.bias.copy_(torch.tensor([-9_000.0, 9_000.0]))
    *_, found = games
    assert [row["return_without"] for row in found.history] == ["0", "28", ""]


def test_a_newcomer_has_its_links_before_the_other_processes_hear_of_it(
    led: tuple[KnowledgeFlow, TeacherPool],
) -> None:
    flow, pool = led
    fresh = nn.Parameter(torch.zeros(1))
    admitted = []

    def admit(teacher: str, share: float, obs: Tensor) -> tuple[nn.Parameter, ...]:
        admitted.append((teacher, share, len(obs), pool.present, flow.absent))
        return (fresh,)

    for _ in range(2):
        games = review(flow, pool, PaidActions, TERMS, admit)
        found = next(filter(None, games))
        assert pool.present == ("a", "b")  # as long as the newcomer's statistics are old
        assert next(games, None) is None
    # The first of the 4 steps of 2 games is kept, as is every eighth.
    assert admitted == [("c", 0.05, 2, ("a", "b"), {"b", "c"})]
    assert pool.present == ("a", "c")
    assert found.fresh == (fresh,)
    assert [(row["teacher"], row["linked"]) for row in found.history] == [("a", 1), ("b", 0), ("c", 1)]
    assert found.lines == (
        "Teacher b is dropped: the return is no worse without it at 2 reviews in a row.",
        "Teacher c is linked: it was never linked.",
    )


@pytest.mark.usefixtures("noise_everywhere")
def test_a_useless_teacher_is_dropped_and_another_taken_and_a_resumed_run_has_both(files: str, tmp_path: Path) -> None:
    config = settings(teachers=files, steps=240, curve_points=0, eval_episodes=0, run_dir=tmp_path / "run")
    session = Session.start(config)
    screen = Screen(session)
    kept = (tmp_path / "breakout.safetensors").read_bytes()
    session.prepare(screen)
    # A teacher that waits may vanish: all were read at the start.
    (tmp_path / "breakout.safetensors").unlink()
    assert session.trainer.train().stopped_by == signal.SIGINT
    assert [line.split(":")[0] for line in screen.said] == ["Teacher pong is dropped", "Teacher breakout is linked"]
    rows = read(tmp_path / "run" / "history.csv")
    events = [(row["teacher"], row["event"], row["linked"]) for row in rows if row["event"]]
    assert events == [("pong", "dropped", "0"), ("breakout", "linked", "1")]
    assert [row["global_step"] for row in rows] == sorted((row["global_step"] for row in rows), key=int)
    net = session.trainer.net
    assert net.flow.absent == {"pong", "seaquest"}
    assert net.flow.reliance("breakout") == pytest.approx(0.05)

    with pytest.raises(UserError, match=r"There is no file .*breakout\.safetensors"):
        Session.resume(tmp_path / "run")
    (tmp_path / "breakout.safetensors").write_bytes(kept)
    again = Session.resume(tmp_path / "run")
    again.prepare(Screen())
    assert again.trainer.net.flow.absent == {"pong", "seaquest"}
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.trainer.net.state_dict()[name].nan_to_num(), tensor.nan_to_num()), name
    outcome = again.trainer.train()
    assert (outcome.failure, outcome.step >= 240) == (None, True)
    more = read(tmp_path / "run" / "history.csv")
    assert more[: len(rows)] == rows
    assert len(more) > len(rows)
    assert int(again.trainer.net.pool.reviews) == len({row["global_step"] for row in more})


@pytest.mark.slow
@pytest.mark.usefixtures("noise_everywhere")
def test_under_a3c_teachers_come_and_go_while_the_workers_play(files: str, tmp_path: Path) -> None:
    of_a3c = {"algo": "a3c", "workers": 2, "steps": 20_000, "curve_points": 0, "eval_episodes": 0}
    session = Session.start(settings(teachers=files, **of_a3c, run_dir=tmp_path / "run"))
    session.prepare(Screen(session))
    # The reviews play noise, and the workers Breakout.
    outcome = session.trainer.train()
    assert (outcome.failure, outcome.stopped_by) == (None, signal.SIGINT)
    rows = read(tmp_path / "run" / "history.csv")
    events = [(row["teacher"], row["event"]) for row in rows if row["event"]]
    assert events == [("pong", "dropped"), ("breakout", "linked")]
    assert session.trainer.net.flow.absent == {"pong", "seaquest"}


@pytest.mark.parametrize(("algo", "start"), [("a2c", 1.0), ("ppo", 0.0)])
def test_the_statistics_of_a_newcomer_begin_where_the_optimisers_do(
    algo: str, start: float, files: str, tmp_path: Path, noise_everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_algo = {"algo": algo, "t_max": 8, "ppo": PPOConfig(batch_size=8)} if algo == "ppo" else {}
    config = settings(teachers=files, **of_algo, steps=240, curve_points=0, eval_episodes=0, run_dir=tmp_path / "run")
    session = Session.start(config)
    screen = Screen(session)
    session.prepare(screen)
    trainer = session.trainer
    trainer.shared.exp_avg_sq.fill_(7.0)
    trainer.shared.adam_steps.fill_(1.0)
    pool, views = trainer.net.pool, named_views(trainer.net, trainer.groups, trainer.shared.exp_avg_sq)
    noted: list[set[str]] = []

    def at_start() -> set[str]:
        return {name for name, view in views.items() if torch.equal(view, torch.full_like(view, start))}

    def note(changes: Sequence[Change]) -> None:
        noted.append(at_start())
        TeacherPool.make(pool, changes)

    monkeypatch.setattr(pool, "make", note)
    trainer.train()
    (newcomer,) = pool.present
    fresh = {
        id(p)
        for i, link in enumerate(trainer.net.flow.links)
        if link.teacher == newcomer
        for p in trainer.net.flow.transforms[i].parameters()
    }
    new = {name for name, parameter in trainer.net.named_parameters() if id(parameter) in fresh}
    assert new
    assert at_start() == new
    # The second review links it; its statistics are reset before the workers of a3c hear of it.
    assert noted[:2] == [set(), new]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"own": {"linked_teachers": 4}}, r"--linked-teachers 4 needs a pool of 4 .* --teachers names 3: pong, break"),
        ({"own": {"fold_at": 0.0}}, r"needs a linked phase with at least one review; this run's has 0 steps"),
        ({"steps": 40}, r"this run's has 40 steps and a review comes every 40"),
        (
            {"steps": 2_088, "own": {"choose_channels": True}},
            r"this run's has 40 steps and a review comes every 40",
        ),
    ],
)
def test_a_pool_that_cannot_work_is_refused(files: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(settings(**{"teachers": files, "steps": 20_000_000, **more}))


def test_all_is_the_whole_zoo(tmp_path: Path) -> None:
    teachers, exact = load_teachers(("all",), tmp_path, identify)
    assert [teacher.path for teacher in teachers] == sorted(ZOO.glob("*.safetensors"))
    assert exact == ("zoo:freeway", "zoo:pong", "zoo:riverraid", "zoo:seaquest")


@pytest.mark.parametrize(("step", "linked"), [(799, ("breakout",)), (800, ())])
@pytest.mark.usefixtures("noise_everywhere")
def test_nobody_comes_in_the_last_fifth_of_the_linked_phase(
    step: int, linked: tuple[str, ...], pool: list[Teacher]
) -> None:
    method = KnowledgeFlowMethod(settings(steps=1_000))
    net = method.build(SPEC, pool)
    net.pool.useless.fill_(1)
    for _ in method.review(net, step, lambda count: trainer.AtariEnvs(None, count)):
        pass
    assert net.pool.present == linked


def test_a_newcomer_changes_a_layer_little_however_large_its_features_are(pool: list[Teacher], obs: Tensor) -> None:
    with torch.no_grad():
        pool[1].net.conv1.weight.mul_(1_000.0)
    method = KnowledgeFlowMethod(settings())
    flow = method.build(SPEC, pool).flow
    before = flow.mixture("conv1", obs)
    method._admit(flow, "breakout", 0.05, obs)
    change = float((flow.mixture("conv1", obs) - before).norm() / before.norm())
    # It has 5 % of the mixture, at the mixture's own norm: 0.05 x 2 if it were the opposite.
    assert 0.01 < change <= 0.1


def test_an_absent_teachers_q_and_w_get_no_gradient(pool: list[Teacher], obs: Tensor) -> None:
    method = KnowledgeFlowMethod(settings())
    net = method.build(SPEC, pool)
    method.begin(net, 0, SPEC, rank=0)
    logits, values = net.flow(obs)
    (logits.square().sum() + values.sum()).backward()
    for index, link in enumerate(net.flow.links):
        for parameter in net.flow.transforms[index].parameters():
            assert (parameter.grad is None or not parameter.grad.any()) == (link.teacher in net.flow.absent)
    for layer in net.flow.layers:
        weights = net.flow.mixing.raw.get_parameter(layer).grad
        present = [link.teacher not in net.flow.absent for link in net.flow.candidates(layer)]
        # Beside absent teachers alone, p of the student is 1.
        assert (weights is None) == (not any(present))
        assert weights is None or [bool(w) for w in weights] == [True, *present]
