"""PathNet's population, tournament, freezing and phases (Fernando et al. 2017)."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.batch import Output, Rollout
from agents.config import TrainConfig
from agents.engines.optimisers import RMSpropTF, SharedAdam
from agents.engines.registry import ENGINES
from agents.engines.shared import SharedModel, bind, untrained
from agents.launch import Session
from agents.methods.base import NetSpec
from agents.methods.pathnet import EvolvingPathNet, FitnessGames, PathNetMethod, Population, mutate, path_of
from agents.run import Run, resolve
from agents.teachers.store import find_teacher
from agents.trainer import Trainer
from envs.atari import Episode
from kfrl.cli.main import main
from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.nets.atari.pathnet import ModularNet, PathNet
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.runs.metrics import read_metrics
from kfrl.training.status import Status

SMALL = {
    "modules": 5,
    "active_modules": 2,
    "module_convs": ((4, 8, 8),),
    "module_units": 8,
    "population": 6,
    "tournament_episodes": 2,
    "rivals": 3,
}
CONFIG = TrainConfig(
    game="Breakout",
    method="pathnet",
    source_games="Pong",
    steps=60,
    source_steps=40,
    workers=2,
    envs_per_worker=1,
    curve_points=0,
    eval_episodes=0,
    methods={"pathnet": SMALL},
)
PONG = NetSpec("pong", ("NOOP", "RIGHT", "LEFT"))
SPEC = NetSpec("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"), (PONG,))


def no_play(count: int, policy: object = None) -> Tensor:
    """A phase of PathNet ends without any."""
    raise AssertionError


def start(phase: int = 0, rank: int = 0, config: TrainConfig = CONFIG) -> tuple[PathNetMethod, EvolvingPathNet]:
    method = PathNetMethod(config)
    net = method.build(SPEC, ())
    method.begin(net, phase, (PONG, SPEC)[phase], rank)
    return method, net


# --- genotypes ----------------------------------------------------------------------------------------------


def test_a_path_has_each_module_once() -> None:
    assert path_of(torch.tensor([[3, 1, 3], [2, 2, 2], [0, 4, 1]])) == [[1, 3], [2], [0, 1, 4]]


def test_elements_mutate_with_probability_1_over_nl_by_minus_2_to_2() -> None:
    genotype, draws = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 9]]), 4_000
    moves = torch.stack([(mutate(genotype, 10) - genotype + 5) % 10 - 5 for _ in range(draws)])
    counts = Counter(moves.flatten().tolist())
    assert set(counts) == {-2, -1, 0, 1, 2}
    # 12 elements a draw, of which one is chosen on average; of its five moves one is 0.
    for move in (-2, -1, 1, 2):
        assert counts[move] == pytest.approx(draws / 5, rel=0.15)
    per_draw = (moves != 0).sum((1, 2)).float()
    assert per_draw.mean().item() == pytest.approx(0.8, rel=0.06)
    # Independently, so about binomially: the variance is 12 x 0.8/12 x (1 - 0.8/12).
    assert per_draw.var().item() == pytest.approx(0.8 * (1 - 0.8 / 12), rel=0.1)
    each = (moves != 0).float().mean(0)
    assert each.min() > 0.04
    assert each.max() < 0.1


def test_mutations_wrap_around() -> None:
    genotype = torch.tensor([[0, 4]])
    found = {element for _ in range(300) for element in mutate(genotype, 5).flatten().tolist()}
    assert found == {0, 1, 2, 3, 4}
    assert genotype.tolist() == [[0, 4]]


def population(*fitness: float) -> Population:
    held = Population(len(fitness), 3, 2, 1_000, 1)
    held.fitness.copy_(torch.tensor(fitness))
    return held


def changed(before: Tensor, after: Tensor) -> list[int]:
    return [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if not torch.equal(old, new)]


def test_a_new_population_is_random_and_unplayed() -> None:
    held = Population(64, 4, 4, 10, 1)
    assert held.genotypes.shape == (64, 4, 4)
    assert set(held.genotypes.flatten().tolist()) == set(range(10))
    assert held.fitness.tolist() == [-math.inf] * 64
    assert held.best == path_of(held.genotypes[0])


def test_a_genotype_that_beats_its_rivals_stays() -> None:
    held = population(1.0, 2.0, 3.0, -math.inf)
    before = held.genotypes.clone()
    held.compete(3, 3.5, rivals=10)
    assert changed(before, held.genotypes) == []
    assert held.fitness.tolist() == [1.0, 2.0, 3.0, 3.5]


@pytest.mark.parametrize("score", [3.0, 2.9])
def test_a_rival_that_is_no_worse_overwrites_it_with_a_mutated_copy(
    score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.methods.pathnet.mutate", lambda genotype, modules: (genotype + 1) % modules)
    held = population(1.0, 2.0, 3.0, -math.inf)
    before = held.genotypes.clone()
    held.compete(3, score, rivals=10)
    assert changed(before, held.genotypes) == [3]
    assert torch.equal(held.genotypes[3], (before[2] + 1) % 1_000)
    assert held.fitness.tolist() == [1.0, 2.0, 3.0, -math.inf], "the copy has yet to play"


def test_it_meets_b_random_others_and_loses_to_the_first_that_is_no_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.methods.pathnet.mutate", lambda genotype, modules: genotype)
    winners: Counter[int] = Counter()
    for _ in range(400):
        held = population(5.0, 6.0, 1.0, 0.0)
        before = held.genotypes.clone()
        held.compete(3, 2.0, rivals=2)
        winners[next((i for i in range(3) if torch.equal(held.genotypes[3], before[i])), 3)] += 1
    # Two of three others: never only number 2, so one of the better two wins, each as often.
    assert winners[3] == winners[2] == 0
    assert winners[0] == pytest.approx(200, abs=45)
    lone: Counter[bool] = Counter()
    for _ in range(400):
        held = population(5.0, 1.0, 1.0, 0.0)
        held.compete(3, 2.0, rivals=1)
        lone[math.isinf(held.fitness[3])] += 1
    assert lone[True] == pytest.approx(400 / 3, abs=40), "it meets the better one in a third of the cases"


# --- fitness games ------------------------------------------------------------------------------------------


def played(*episodes: tuple[int, float, int]) -> Rollout:
    nothing = torch.zeros(0)
    ended = tuple(Episode(env, score, steps, False) for env, score, steps in episodes)
    return Rollout(
        obs=nothing,
        contexts=((),),
        actions=nothing,
        output=Output(nothing, nothing),
        episodes=ended,
        num_envs=1,
        rewards=nothing,
        terminated=nothing,
        truncated=nothing,
        truncated_values=nothing,
        bootstrap=nothing,
    )


def play(games: FitnessGames, rollouts: int, *episodes: tuple[int, float, int]) -> float | None:
    for _ in range(rollouts - 1):
        games.add(played())
    games.add(played(*episodes))
    return games.fitness


def test_fitness_comes_from_t_games() -> None:
    games = FitnessGames(3, num_envs=1, t_max=5)
    assert play(games, 10, (0, 6.0, 50)) is None
    assert play(games, 10, (0, 1.0, 50)) is None
    assert play(games, 10, (0, 2.0, 50), (0, 100.0, 5)) == 3.0


def test_fitness_takes_as_many_games_from_each_environment() -> None:
    games = FitnessGames(3, num_envs=2, t_max=5)  # 2 games in each
    assert play(games, 100, (0, 1.0, 9), (0, 2.0, 9), (0, 50.0, 9), (1, 3.0, 9)) is None
    assert play(games, 1, (1, 6.0, 9)) == 3.0


def test_games_that_another_genotype_began_do_not_count() -> None:
    games = FitnessGames(1, num_envs=1, t_max=5)
    assert play(games, 4, (0, 9.0, 25)) is None
    # One that began less than a rollout before counts.
    assert play(FitnessGames(1, num_envs=1, t_max=5), 4, (0, 9.0, 24)) == 9.0


def test_a_resumed_worker_goes_on_with_the_genotype_whose_turn_it_is() -> None:
    _, net = start(rank=1)
    net.population.turns[1] = 3
    _, saved = start()
    saved.load_state_dict(net.state_dict())
    resumed = PathNetMethod(CONFIG)
    resumed.begin(saved, 0, PONG, rank=1)
    assert resumed.path(saved) == path_of(net.population.genotypes[3])
    saved.population.renew()
    assert saved.population.turns.tolist() == [0, 1], "a new population starts with the first of each share"


def test_a_worker_plays_its_share_of_the_population_in_turn() -> None:
    method, net = start(rank=1)
    taken = []
    for _ in range(5):
        taken.append(method._index)
        assert net.population.turns.tolist()[method._rank] == method._index
        method.after_rollout(played((0, 4.0, 3), (0, 8.0, 2)))
        method.after_update(net, 0.0)
    # 6 genotypes, 2 workers.
    assert taken == [1, 3, 5, 1, 3]
    assert [bool(value) for value in net.population.fitness.isfinite()][0::2] == [False] * 3


def test_the_path_changes_between_rollouts_only() -> None:
    method, net = start()
    path = method.path(net)
    method.after_rollout(played((0, 4.0, 3), (0, 8.0, 2)))
    assert method.path(net) == path
    method.after_update(net, 0.0)
    assert method.path(net) == path_of(net.population.genotypes[2])
    assert net.population.fitness[0] == 6.0


# --- training and phases ------------------------------------------------------------------------------------


def step(method: PathNetMethod, net: EvolvingPathNet, shared: SharedModel, obs: Tensor) -> None:
    """An update by Adam, as a worker's."""
    groups, grads = method.parameter_groups(net), torch.zeros_like(shared.parameters)
    bind(groups, shared.parameters, grads)
    output = method.forward(net, obs, ())
    (output.logits.square().sum() + output.values.sum()).backward()
    assert SharedAdam(shared, groups, 40.0).push(grads, 0.01) is not None


def moved(net: EvolvingPathNet, before: dict[str, Tensor]) -> list[list[int]]:
    """The modules that are not what they were, layer by layer."""
    after = net.state_dict()
    names = [name for name in before if name.startswith("layers.") and not torch.equal(before[name], after[name])]
    found: list[set[int]] = [set() for _ in net.layers]
    for name in names:
        _, layer, index, _ = name.split(".")
        found[int(layer)].add(int(index))
    return [sorted(indices) for indices in found]


def snapshot(net: EvolvingPathNet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_an_update_moves_the_active_modules_and_no_other_even_by_momentum(obs: Tensor) -> None:
    method, net = start()
    net.population.genotypes[0] = torch.tensor([[0, 1], [2, 2]])
    net.population.genotypes[2] = torch.tensor([[1, 4], [0, 3]])
    shared = SharedModel.create(method.parameter_groups(net), 1)
    before = snapshot(net)
    step(method, net, shared, obs)
    assert moved(net, before) == [[0, 1], [2]]
    between = snapshot(net)
    method._index = 2
    step(method, net, shared, obs)
    assert moved(net, between) == [[1, 4], [0, 3]]


def test_after_a_phase_the_best_path_is_frozen_and_the_rest_starts_afresh(obs: Tensor) -> None:
    method, net = start()
    net.population.genotypes[4] = torch.tensor([[3, 3], [0, 1]])
    net.population.fitness.copy_(torch.tensor([1.0, -math.inf, 2.0, 0.0, 9.0, 8.0]))
    before, genotypes = snapshot(net), net.population.genotypes.clone()
    method.end_phase(net, no_play)
    assert moved(net, before) == [[0, 1, 2, 4], [2, 3, 4]]
    assert net.population.fitness.tolist() == [-math.inf] * 6
    assert not torch.equal(net.population.genotypes, genotypes)

    method.begin(net, 1, SPEC, 0)
    groups = method.parameter_groups(net)
    trained = {id(p) for group in groups for p in group.parameters}
    assert {id(p) for p in net.heads["breakout"].parameters()} <= trained
    fixed = untrained(net, groups)
    assert {name.rsplit(".", 1)[0] for name in fixed if name.startswith("layers.")} == {
        "layers.0.3",
        "layers.1.0",
        "layers.1.1",
    }
    assert {"frozen", "population.genotypes", "population.fitness"} <= set(fixed)
    net.population.genotypes[0] = torch.tensor([[3, 4], [0, 2]])
    start_of_phase = snapshot(net)
    step(method, net, SharedModel.create(groups, 1), obs)
    assert moved(net, start_of_phase) == [[4], [2]], "the frozen modules are read but do not train"


def test_the_exported_net_is_the_best_path_with_the_games_own_heads(obs: Tensor) -> None:
    method, net = start(phase=1)
    net.population.genotypes[3] = torch.tensor([[0, 4], [2, 2]])
    net.population.fitness[3] = 1.0
    exported = method.export(net)
    assert exported.arch["modules"] == [2, 1]
    torch.testing.assert_close(exported(obs)[0], net(obs, [[0, 4], [2]], "breakout")[0], rtol=1e-4, atol=1e-6)


def test_metrics_say_how_the_population_does() -> None:
    method, net = start(phase=1)
    assert method.metrics(net)["pathnet/played"] == 0.0
    net.population.genotypes[3] = torch.tensor([[0, 4], [2, 2]])
    net.population.fitness[2:4] = torch.tensor([1.0, 4.0])
    net.frozen[0, 4] = net.frozen[1, 0] = True
    assert method.metrics(net) == {
        "pathnet/played": 2.0,
        "pathnet/modules": 3.0,
        "pathnet/frozen_modules": 1.0,
        "pathnet/best_fitness": 4.0,
        "pathnet/mean_fitness": 2.5,
    }


def test_a_best_path_that_has_not_played_is_said_to_be_a_random_one() -> None:
    method, net = start()
    assert method.caveat(net).startswith("In 1 of 1 games no path")
    net.population.compete(3, 1.0, rivals=0)
    assert method.caveat(net) == ""


def test_a_random_path_of_a_source_game_is_remembered() -> None:
    method, net = start()
    method.end_phase(net, no_play)
    method, again = start(phase=1)
    again.load_state_dict(net.state_dict())
    assert method.caveat(again).startswith("In 2 of 2 games no path")
    again.population.compete(3, 1.0, rivals=0)
    assert method.caveat(again).startswith("In 1 of 2 games no path")


# --- runs ---------------------------------------------------------------------------------------------------


class Screen:
    """Shows nothing; keeps the net as it was when the second phase began."""

    trainer: Trainer | None = None
    begun: dict[str, Tensor]

    def update(self, status: Status) -> None:
        pass

    def say(self, text: str) -> None:
        assert self.trainer is not None
        self.begun = {name: tensor.clone() for name, tensor in self.trainer.net.state_dict().items()}


def prepare(folder: Path, **settings: object) -> Run:
    return Session.start(replace(CONFIG, run_dir=folder, **settings)).run


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"algo": "a2c", "workers": None, "envs_per_worker": 2},
        {"algo": "ppo", "workers": None, "envs_per_worker": 2, "t_max": 10, "batch": 10},
        {"algo": "a3c"},
    ],
    ids=["a2c", "ppo", "a3c"],
)
def test_it_runs_under_every_engine_with_the_best_path_of_the_source_game_unchanged(
    settings: dict[str, object], tmp_path: Path, noise_games: None
) -> None:
    if "batch" in settings:
        settings = {name: value for name, value in settings.items() if name != "batch"}
        settings["ppo"] = replace(CONFIG.ppo, epochs=2, batch_size=10)
    run = prepare(tmp_path / "run", **settings)
    screen = Screen()
    screen.trainer = ENGINES[run.config.algo](run, screen)
    outcome = screen.trainer.train()
    assert outcome.failure is None
    assert outcome.step >= 60
    assert outcome.source_steps >= 40
    net = outcome.net
    assert isinstance(net, EvolvingPathNet)
    assert 2 <= int(net.frozen.sum()) <= 4
    trained = moved(net, screen.begun)
    # Some module too, unless chance drew paths of frozen ones only.
    assert not torch.equal(net.state_dict()["heads.breakout.value.bias"], screen.begun["heads.breakout.value.bias"])
    assert not any(net.frozen[layer, list(indices)].any() for layer, indices in enumerate(trained))
    rows = read_metrics(run.folder.metrics)
    assert "pathnet/frozen_modules" in rows[-1]
    if run.config.algo != "a3c":
        assert rows[-1]["pathnet/best_fitness"] == 8.0
    teacher = find_teacher(str(run.folder.path), tmp_path)
    assert teacher.card.arch["family"] == "pathnet"
    checkpoint = latest_checkpoint(run.folder.checkpoints)
    again = ENGINES[run.config.algo](run, Screen(), checkpoint)
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor), name
    assert isinstance(again.method.export(again.net), ModularNet)


@pytest.mark.slow
def test_a_path_that_no_tournament_chose_is_frozen_and_scored_with_a_word(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    endless = {**SMALL, "tournament_episodes": 1000}
    arguments = {
        "algo": "a2c",
        "workers": None,
        "envs_per_worker": 2,
        "methods": {"pathnet": endless},
        "eval_episodes": 1,
    }
    run = prepare(Path("run"), **arguments)
    assert main(["train", "--config", str(run.folder.config), "--run-dir", "again"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "In 1 of 1 games no path" in said
    assert "In 2 of 2 games no path" in said
    assert main(["eval", "again", "--episodes", "1", "--json", "scores.json"]) == 0
    assert "In 2 of 2 games no path" in " ".join(capsys.readouterr().out.split())
    assert json.loads(Path("scores.json").read_text())["caveat"].startswith("In 2 of 2 games")
    assert main(["compare", "again"]) == 0
    assert "- again: In 2 of 2 games no path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source_games": ""}, "pathnet needs source games"),
        ({"workers": 7}, r"7 workers needs its own genotype, got --population 6"),
        ({"teachers": "zoo:seaquest"}, "takes no teachers"),
        ({"methods": {"pathnet": {**SMALL, "module_convs": ((4, 99, 8),)}}}, "kernel 1 to 84"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        resolve(replace(CONFIG, run_dir=tmp_path / "run", **settings))
    assert list(tmp_path.iterdir()) == []


def test_several_source_games_come_one_after_the_other(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", source_games="Pong,Freeway")
    games: Sequence[str] = [phase.games[0].game for phase in run.phases]
    assert games == ["pong", "freeway", "breakout"]


# --- the paper's controls and its last layer --------------------------------------------------------------------


def controlled(control: str, **more: Any) -> TrainConfig:
    small = {
        name: value for name, value in SMALL.items() if name not in ("population", "tournament_episodes", "rivals")
    }
    return replace(CONFIG, methods={"pathnet": {**small, "control": control}}, **more)


def test_a_control_refuses_the_settings_of_a_population_and_of_absent_source_games(tmp_path: Path) -> None:
    alone = controlled("scratch", source_games="", source_steps=None, run_dir=tmp_path / "run")
    populated = replace(alone, methods={"pathnet": {**alone.methods["pathnet"], "population": 3}})
    with pytest.raises(UserError, match=r"--population 3 has no effect in this run: --control scratch"):
        resolve(populated)
    with pytest.raises(UserError, match=r"--control scratch learns no source game, .* --source-steps 500"):
        resolve(replace(alone, source_steps=500))


def test_a_control_has_one_fixed_path_for_all_workers_that_no_tournament_changes(obs: Tensor) -> None:
    method = PathNetMethod(controlled("fine-tuned"))
    net = method.build(SPEC, ())
    width = SMALL["active_modules"]
    for rank in range(CONFIG.shape.workers):
        method.begin(net, 0, PONG, rank)
        assert method.path(net) == [list(range(width))] * 2
        for _ in range(30):
            method.after_rollout(played((0, 5.0, 1)))
            method.after_update(net, 0.0)
        assert method.path(net) == [list(range(width))] * 2
    assert method.caveat(net) == ""


def test_the_fine_tuned_control_goes_on_with_what_the_source_game_trained_and_nothing_frozen(obs: Tensor) -> None:
    method = PathNetMethod(controlled("fine-tuned"))
    net = method.build(SPEC, ())
    before = snapshot(net)
    assert list(method.end_phase(net, no_play)) == []
    assert moved(net, before) == [[], []]
    assert not net.frozen.any()
    assert method.export(net).arch["modules"] == [SMALL["active_modules"]] * 2


def test_the_scratch_control_has_no_source_game(tmp_path: Path) -> None:
    run = resolve(controlled("scratch", source_games="", source_steps=None, run_dir=tmp_path / "run"))
    assert [phase.games[0].game for phase in run.phases] == ["breakout"]
    with pytest.raises(UserError, match=r"--control scratch learns only the run's own game"):
        resolve(controlled("scratch", run_dir=tmp_path / "run"))
    with pytest.raises(UserError, match="needs source games"):
        resolve(controlled("fine-tuned", source_games="", run_dir=tmp_path / "run"))


def test_the_last_layer_may_take_the_mean(obs: Tensor) -> None:
    path = [[0, 1], [2, 4]]
    nets = {kind: PathNet({"a": 3}, 5, 2, ((4, 8, 8),), 8, last_layer=kind) for kind in ("sum", "mean")}
    nets["mean"].load_state_dict(nets["sum"].state_dict())
    h = {kind: net(obs, path, "a")[0] - net.heads["a"]["policy"].bias for kind, net in nets.items()}
    torch.testing.assert_close(h["sum"], 2 * h["mean"])
    alone = nets["mean"].along(path, "a")
    torch.testing.assert_close(alone(obs)[0], nets["mean"](obs, path, "a")[0])
    again = build_net(alone.arch, 3)
    again.load_state_dict(alone.state_dict())
    assert torch.equal(again(obs)[0], alone(obs)[0])


def test_a_module_off_the_path_stays_as_it_is_under_a3cs_rmsprop_too(obs: Tensor) -> None:
    method, net = start()
    net.population.genotypes[0] = torch.tensor([[0, 1], [2, 2]])
    groups = method.parameter_groups(net)
    shared = SharedModel.create(groups, 1)
    grads, before = torch.zeros_like(shared.parameters), snapshot(net)
    bind(groups, shared.parameters, grads)
    output = method.forward(net, obs, ())
    (output.logits.square().sum() + output.values.sum()).backward()
    assert RMSpropTF.of_a3c(shared, groups, 40.0).push(grads, 0.01) is not None
    assert moved(net, before) == [[0, 1], [2]]
