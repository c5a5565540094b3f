"""PathNet (Fernando et al. 2017): a population of paths through a net of modules evolves while the modules train."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from agents.batch import Batch, Context, Output, Rollout
from agents.config import TrainConfig
from agents.methods.base import Method, NetSpec, Phase, Play
from agents.teachers.formats import Teacher
from kfrl.config import Count
from kfrl.errors import UserError
from kfrl.nets.atari.pathnet import LastLayer, ModularNet, Path, PathNet
from kfrl.optim.groups import ParameterGroup

MUTATION_REACH = 2
"""A mutation adds a number from -2 to 2 to an element."""


def path_of(genotype: Tensor) -> Path:
    """The distinct modules of each layer: (L, N) -> L lists of at most N."""
    return [sorted(set(layer)) for layer in genotype.tolist()]


def mutate(genotype: Tensor, modules: int) -> Tensor:
    """A copy of (L, N); with probability 1 / (N L), a number from -2 to 2 is added to each element, modulo M."""
    chosen = torch.rand(genotype.shape) < 1.0 / genotype.numel()
    moves = torch.randint(-MUTATION_REACH, MUTATION_REACH + 1, genotype.shape)
    return (genotype.cpu() + moves * chosen) % modules


class Population(nn.Module):
    """P genotypes and their fitness, in shared memory; each worker writes only its share."""

    genotypes: Tensor
    """(P, L, N) int64: indices of modules."""
    fitness: Tensor
    """(P,) mean return of the genotype's last games; -inf if it has not played yet."""

    turns: Tensor
    """(workers,) int64: index of the genotype that each worker plays."""

    def __init__(self, size: int, layers: int, width: int, modules: int, workers: int) -> None:
        """Draw P random genotypes, of L layers with N of M modules, and assign each worker its first one."""
        super().__init__()
        self.modules_per_layer = modules
        self.register_buffer("turns", torch.zeros(workers, dtype=torch.int64))
        self.register_buffer("genotypes", torch.zeros(size, layers, width, dtype=torch.int64))
        self.register_buffer("fitness", torch.zeros(size))
        self.renew()

    def renew(self) -> None:
        """Draw a new population."""
        self.genotypes.copy_(torch.randint(self.modules_per_layer, self.genotypes.shape))
        self.fitness.fill_(-math.inf)
        self.turns.copy_(torch.arange(len(self.turns)))

    @property
    def played(self) -> Tensor:
        """(P,) bool: whether a genotype has a fitness."""
        return self.fitness.isfinite()

    @property
    def best(self) -> Path:
        """The path of the fittest genotype."""
        return path_of(self.genotypes[int(self.fitness.argmax())])

    def fix(self, width: int) -> None:
        """Set all genotypes to the same path: the first `width` modules of each layer."""
        self.genotypes.copy_(torch.arange(width) % self.modules_per_layer)

    def compete(self, index: int, fitness: float, rivals: int) -> None:
        """Set the fitness of genotype `index`, and compare it with B random others.

        The first of them with at least this fitness replaces it by a mutated copy, which has no fitness yet.
        """
        self.fitness[index] = fitness
        others = [other for other in torch.randperm(len(self.fitness)).tolist() if other != index]
        for rival in others[:rivals]:
            if self.fitness[rival] >= fitness:
                self.genotypes[index].copy_(mutate(self.genotypes[rival], self.modules_per_layer))
                self.fitness[index] = -math.inf
                return


class EvolvingPathNet(PathNet):
    """A PathNet with its population of paths."""

    population: Population
    unchosen: Tensor
    """() int64: number of earlier games whose frozen path was not chosen by fitness."""


class FitnessGames:
    """The games from which a genotype's fitness is computed, equally many in each of a worker's environments.

    Taking the first games to end would prefer short games, which usually have low scores.
    """

    def __init__(self, episodes: int, num_envs: int, t_max: int) -> None:
        """Collect at least `episodes` games from K environments, with rollouts of `t_max` steps."""
        self._quota, self._num_envs, self._t_max = math.ceil(episodes / num_envs), num_envs, t_max
        self._scores: dict[int, list[float]] = defaultdict(list)
        self._rollouts = 0

    def add(self, rollout: Batch) -> None:
        """Add the games that ended, without those that another genotype played for a rollout or more."""
        self._rollouts += 1
        longest = (self._rollouts + 1) * self._t_max
        for episode in rollout.episodes:
            if episode.steps < longest and len(self._scores[episode.env]) < self._quota:
                self._scores[episode.env].append(episode.score)

    @property
    def fitness(self) -> float | None:
        """The mean return; None while games are missing."""
        scores = [score for env in self._scores.values() for score in env]
        return sum(scores) / len(scores) if len(scores) == self._quota * self._num_envs else None


@dataclass(frozen=True)
class Settings:
    """PathNet. L is the number of --module-convs and one fully connected layer."""

    modules: Count = 10
    """M, modules in each layer."""
    active_modules: Count = 4
    """N, most modules of a layer in a path."""
    module_convs: tuple[tuple[int, int, int], ...] = ((8, 8, 4), (8, 4, 2), (8, 3, 1))
    """(filters, kernel, stride) of the modules in each layer but the last."""
    module_units: Count = 256
    """Units of a module in the last layer."""
    population: Count = 64
    """P, number of genotypes; a worker plays its share of them in turn."""
    tournament_episodes: Count = 10
    """T, games of a genotype before each tournament; rounded up to a multiple of a worker's environments."""
    rivals: Count = 10
    """B, number of genotypes that it is then compared with."""
    last_layer: LastLayer = "sum"
    """How the last layer combines its modules: sum as in the paper, or mean as in its published results."""
    control: Literal["none", "scratch", "fine-tuned"] = "none"
    """One of the paper's controls, with one fixed path of N modules per layer instead of a population. scratch: trained
    on the run's own game only. fine-tuned: trained on the source games first, without freezing."""


class PathNetMethod(Method[EvolvingPathNet]):
    """A tournament of paths in each source game, after which the best path is frozen, and then in the run's own game.

    Each worker plays its share of the population in turn, each genotype for T games. A3C trains only the modules of the
    path that is played.
    """

    takes_sources = "before"
    takes_init = False
    unused = MappingProxyType(
        dict.fromkeys(
            ("convs", "hidden"),
            "its layers are of modules. Leave it out; --module-convs and --module-units are their shape.",
        )
    )
    Settings = Settings

    def __init__(self, config: TrainConfig) -> None:
        """Store the settings.

        Raises:
            UserError: there are more workers than genotypes.
        """
        super().__init__(config)
        self.workers = config.shape.workers
        self.fixed = self.own.control != "none"
        if not self.fixed and self.own.population < self.workers:
            raise UserError(
                f"Each of {self.workers} workers needs its own genotype, got --population "
                f"{self.own.population}. Give fewer --workers or a larger population."
            )

    @classmethod
    def check_sources(cls, name: str, count: int, steps: int | None) -> None:
        """Check the source games. `build` checks that there are some, because one control has none."""
        if count:
            super().check_sources(name, count, steps)

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """One source game after the other, then the run's own game."""
        steps = self.config.source_steps
        assert steps is not None
        return (*(Phase((source,), steps, source=True) for source in spec.sources), Phase((spec,), self.config.steps))

    def check_used(self) -> None:
        """See `Method.check_used`."""
        if self.fixed:
            self.refuse_unused(
                ("population", "tournament_episodes", "rivals"),
                f"--control {self.own.control} has one fixed path. Leave one of them out.",
            )
        if self.own.control == "scratch" and self.config.source_steps not in (None, self.config.steps):
            raise UserError(
                "--control scratch learns no source game, so there is nothing to do for --source-steps "
                f"{self.config.source_steps}. Leave it out."
            )

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> EvolvingPathNet:
        """All modules, a pair of heads for each game, and a random population.

        Raises:
            UserError: there are no source games, or there are some for the control without source games.
        """
        if self.own.control != "scratch":
            super().check_sources("pathnet", len(spec.sources), None)
        elif spec.sources:
            raise UserError("--control scratch learns only the run's own game. Leave --source-games out.")
        self.game = spec.game
        settings: Settings = self.own
        outputs = {task.game: len(task.actions) for task in (*spec.sources, spec)}
        net = EvolvingPathNet(
            outputs,
            settings.modules,
            settings.active_modules,
            settings.module_convs,
            settings.module_units,
            last_layer=settings.last_layer,
        )
        layers = len(settings.module_convs) + 1
        net.register_buffer("unchosen", torch.zeros((), dtype=torch.int64))
        size = self.workers if self.fixed else settings.population
        net.population = Population(size, layers, settings.active_modules, settings.modules, self.workers)
        if self.fixed:
            net.population.fix(settings.active_modules)
        return net

    def begin(self, net: EvolvingPathNet, phase: int, task: NetSpec, rank: int) -> None:
        """Start with the worker's present genotype, and with the first of its games."""
        super().begin(net, phase, task, rank)
        net.layers.requires_grad_(False)
        for module in net.free_modules():
            module.requires_grad_(True)
        self._rank, self._index = rank, int(net.population.turns[rank])
        self._start_games()

    def _start_games(self) -> None:
        shape = self.config.shape
        self._games = FitnessGames(self.own.tournament_episodes, shape.envs_per_worker, shape.t_max)

    def end_phase(self, net: EvolvingPathNet, play: Play) -> Iterable[str]:
        """Freeze the best path, re-initialise the free modules, and draw a new population; not in a control."""
        if self.fixed:
            return ()
        caveat = self.caveat(net)
        net.unchosen += int(not net.population.played.any())
        net.freeze(net.population.best)
        net.population.renew()
        return [caveat] if caveat else []

    def caveat(self, net: EvolvingPathNet) -> str:
        """A sentence on the games in which no path had a fitness."""
        phases = int(net.unchosen) + (not net.population.played.any())
        if self.fixed or not phases:
            return ""
        return (
            f"In {phases} of {self.phase + 1} games no path has finished the games for its fitness, so the "
            "path taken as the best is a random one. Give more steps, fewer --tournament-episodes or fewer "
            "--envs-per-worker."
        )

    def parameter_groups(self, net: EvolvingPathNet) -> list[ParameterGroup]:
        """The game's heads, and a lazy group for each free module, so that unused modules do not change."""
        heads = ParameterGroup(tuple(net.heads[self.task.game].parameters()))
        return [heads, *(ParameterGroup(tuple(module.parameters()), lazy=True) for module in net.free_modules())]

    def forward(self, net: EvolvingPathNet, obs: Tensor, context: Context) -> Output:
        """Logits and values along this worker's path."""
        return Output(*net(obs, self.path(net), self.task.game))

    def path(self, net: EvolvingPathNet) -> Path:
        """The path of this worker's genotype."""
        return path_of(net.population.genotypes[self._index])

    def after_rollout(self, rollout: Rollout) -> None:
        """Add the games that ended."""
        self._games.add(rollout)

    def after_update(self, net: EvolvingPathNet, progress: float) -> None:
        """After the games of a genotype: run the tournament, and start the next genotype of this worker's share."""
        fitness = self._games.fitness
        if fitness is None or self.fixed:
            return
        net.population.compete(self._index, fitness, self.own.rivals)
        share = range(self._rank, self.own.population, self.workers)
        self._index = share[(share.index(self._index) + 1) % len(share)]
        net.population.turns[self._rank] = self._index
        self._start_games()

    def export(self, net: EvolvingPathNet) -> ModularNet:
        """A net with the modules of the best path only."""
        return net.along(net.population.best, self.game)

    def metrics(self, net: EvolvingPathNet) -> dict[str, float]:
        """The population's fitness, if it has any, and the numbers of modules and frozen modules in the best path."""
        fitness = net.population.fitness
        played = fitness[net.population.played]
        best = net.population.best
        reused = sum(int(net.frozen[layer, list(active)].sum()) for layer, active in enumerate(best))
        logged = {
            "pathnet/played": float(len(played)),
            "pathnet/modules": float(sum(map(len, best))),
            "pathnet/frozen_modules": float(reused),
        }
        if len(played):
            logged |= {"pathnet/best_fitness": float(played.max()), "pathnet/mean_fitness": float(played.mean())}
        return logged


METHOD = PathNetMethod
