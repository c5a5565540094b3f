"""Sensitivity of a progressive net's policy to each layer of each column (Rusu et al. 2016, section 3, appendix A).

Average Fisher Sensitivity (AFS) is from gradients on the net's own play, Average Perturbation Sensitivity (APS) from
the scores of games with noise in one layer of one column.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.actions import in_order
from agents.config import TrainConfig
from agents.evaluation.play import SIDE_BY_SIDE, evaluate, policy_of
from agents.policies import Policy
from agents.rollout import sample
from agents.teachers.formats import Teacher
from agents.teachers.store import load_teacher
from envs.atari import AtariEnvs, action_set, identify
from envs.games import find_game
from envs.protocols import Protocol
from kfrl.errors import UserError
from kfrl.machine import cores
from kfrl.nets.atari.progressive import ProgressiveNet
from kfrl.nets.hooks import changed_activations
from kfrl.nets.memory_format import screens
from kfrl.runs.atomic import write_text
from kfrl.runs.folder import RUNS, RunFolder
from kfrl.seeding import stream

STUDENT = "student"
"""The name of the trained column."""
FACTOR = 4.0
"""Ratio of two noise variances that are tried one after the other."""
MOST_FACTORS = 5
"""The search for a variance stays within FACTOR ** -5 and FACTOR ** 5."""


class Place(NamedTuple):
    """A layer of a column."""

    column: str
    layer: str


Rows: TypeAlias = list[dict[str, Any]]
Change: TypeAlias = Callable[[Place, Tensor], Tensor]


def places(net: ProgressiveNet) -> dict[str, list[Place]]:
    """Hidden layer i of the trained column -> layer i of every column, the trained one last."""
    taps = {**net.taps, STUDENT: net.hidden_layers}
    return {
        layer: [Place(column, layers[depth]) for column, layers in taps.items()]
        for depth, layer in enumerate(net.hidden_layers)
    }


def changed_logits(net: ProgressiveNet, obs: Tensor, change: Change) -> Tensor:
    """The logits (B, A) if the activation h of each layer of each column were `change(place, h)`.

    Later layers of a frozen column read the changed activation as well as the laterals do. Unlike in training, the
    frozen columns are part of the graph.
    """
    x = screens(obs)
    features: list[Tensor] = []
    for (name, taps), column in zip(net.taps.items(), net.columns, strict=True):
        seen: dict[str, Tensor] = {}

        def changed(layer: str, h: Tensor, name: str = name, seen: dict[str, Tensor] = seen) -> Tensor:
            seen[layer] = change(Place(name, layer), h)
            return seen[layer]

        with changed_activations(column, tuple(dict.fromkeys(taps)), changed):
            column(x)
        features += [seen[layer] for layer in taps]
    with changed_activations(net, net.hidden_layers, lambda layer, h: change(Place(STUDENT, layer), h)):
        logits: Tensor = net(x, features)[0]
    return logits


@dataclass
class _Sums:
    """Sums over observations for the M features of a layer; a map's are over its pixels too."""

    h: Tensor
    h_squared: Tensor
    g_squared: Tensor
    values: int = 0
    """Number of activations in the sums, for each feature."""

    @property
    def variance(self) -> Tensor:
        """Variance (M,) of each feature's activations."""
        return (self.h_squared / self.values - (self.h / self.values).square()).clamp_min(0.0)


class FisherSums:
    """The diagonal of the Fisher matrix of the policy for the normalised activations of every layer of every column.

    F(m, m) = Var[h_m] E[ (d log pi(a | s) / d h_m)^2 ]: the derivative is for h_m divided by its standard deviation. A
    feature m is a unit, or a map, for which the squares are summed over its pixels.
    """

    def __init__(self, net: ProgressiveNet) -> None:
        """Start without observations."""
        self.net = net
        self.observations = 0
        self._sums: dict[Place, _Sums] = {}

    def add(self, obs: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Add observations (B, stack, H, W), and return the actions (B,) that `choose` takes from the logits (B, A)."""
        seen: dict[Place, Tensor] = {}

        def keep(place: Place, h: Tensor) -> Tensor:
            seen[place] = h if h.requires_grad else h.requires_grad_()
            return seen[place]

        with torch.enable_grad():
            logits = changed_logits(self.net, obs, keep)
            actions = choose(logits.detach())
            chosen = logits.log_softmax(1).gather(1, actions[:, None]).sum()
            gradients = torch.autograd.grad(chosen, list(seen.values()), materialize_grads=True)
        for (place, h), g in zip(seen.items(), gradients, strict=True):
            self._add(place, h.detach(), g)
        self.observations += len(obs)
        return actions

    def _add(self, place: Place, h: Tensor, g: Tensor) -> None:
        h, g = (tensor.double().reshape(*tensor.shape[:2], -1) for tensor in (h, g))
        empty = torch.zeros(h.shape[1], dtype=torch.float64)
        sums = self._sums.setdefault(place, _Sums(empty, empty, empty))
        sums.h = sums.h + h.sum((0, 2))
        sums.h_squared = sums.h_squared + h.square().sum((0, 2))
        sums.g_squared = sums.g_squared + g.square().sum((0, 2))
        sums.values += h.shape[0] * h.shape[2]

    def fisher(self) -> dict[Place, Tensor]:
        """The diagonal (M,) for each layer of each column."""
        return {place: sums.variance * sums.g_squared / self.observations for place, sums in self._sums.items()}

    def deviations(self) -> dict[Place, Tensor]:
        """The standard deviation (M,) of each feature's activations."""
        return {place: sums.variance.sqrt() for place, sums in self._sums.items()}


def shares(values: Sequence[float]) -> list[float]:
    """Values divided by their sum; all NaN if it is 0."""
    total = sum(values)
    return [value / total if total else math.nan for value in values]


def feature_shares(columns: Sequence[Tensor]) -> list[Tensor] | None:
    """AFS(i, k, m) = F_k(m, m) / sum over k of F_k(m, m): (M,) for each column, NaN where the sum is 0.

    None if the columns differ in the number of features.
    """
    if len({len(fisher) for fisher in columns}) > 1:
        return None
    stacked = torch.stack(list(columns))
    return list(stacked / stacked.sum(0))


@dataclass(frozen=True)
class Perturbation:
    """Games with noise in one layer of one column."""

    scores: dict[float, float]
    """Variance of the noise, in multiples of each feature's variance -> mean raw score."""
    half: float
    """The variance at which the score is halfway between the clean score and random play's; inf if at none."""

    @property
    def precision(self) -> float:
        """1 / variance."""
        return 1.0 / self.half


def find_half(score: Callable[[float], float], target: float) -> Perturbation:
    """Find the variance of noise at which `score(variance)` falls to `target`.

    From 1, the variance is multiplied or divided by FACTOR until the score crosses the target, at most MOST_FACTORS
    times; between the last two, the score is interpolated over the variance's logarithm. A score that stays below the
    target down to the smallest variance gives that variance.
    """
    scores = {1.0: score(1.0)}
    falling = scores[1.0] > target
    low = high = 1.0
    for _ in range(MOST_FACTORS):
        low, high = (high, high * FACTOR) if falling else (low / FACTOR, low)
        tried = high if falling else low
        scores[tried] = score(tried)
        if (scores[tried] > target) != falling:
            share = (scores[low] - target) / (scores[low] - scores[high])
            return Perturbation(scores, low * (high / low) ** share)
    return Perturbation(scores, math.inf if falling else low)


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivities of a progressive net, by layer of the trained column and by column."""

    places: dict[str, list[Place]]
    fisher: dict[Place, Tensor]
    perturbations: dict[Place, Perturbation]
    """Those of the places in which noise was tried."""

    @property
    def columns(self) -> list[str]:
        """The names of the columns, the trained one last."""
        return [place.column for place in next(iter(self.places.values()))]

    @cached_property
    def fisher_shares(self) -> NDArray[np.float64]:
        """(layers, columns): the sum of a column's F(m, m), divided by that of all columns."""
        return np.array([shares([float(self.fisher[place].sum()) for place in row]) for row in self.places.values()])

    @cached_property
    def afs(self) -> NDArray[np.float64]:
        """(layers, columns): the mean over m of AFS(i, k, m), without the m at which all columns have 0.

        NaN for a layer in which the columns differ in the number of features.
        """
        rows = []
        for row in self.places.values():
            by_feature = feature_shares([self.fisher[place] for place in row])
            means = [math.nan] * len(row) if by_feature is None else [float(each.nanmean()) for each in by_feature]
            rows.append(means)
        return np.array(rows)

    @cached_property
    def aps(self) -> NDArray[np.float64]:
        """(layers, columns): the precision at half the score, divided by the sum over columns.

        NaN for a layer in which noise was not tried in every column.
        """
        tried = self.perturbations
        precisions = [
            [tried[place].precision if place in tried else math.nan for place in row] for row in self.places.values()
        ]
        return np.array([shares(row) for row in precisions])

    def rows(self) -> Rows:
        """A row for each layer and column."""
        rows: Rows = []
        for i, (layer, row) in enumerate(self.places.items()):
            for k, place in enumerate(row):
                noise = self.perturbations.get(place)
                rows.append(
                    {
                        "layer": layer,
                        "column": place.column,
                        "column_layer": place.layer,
                        "features": len(self.fisher[place]),
                        "fisher": float(self.fisher[place].sum()),
                        "fisher_share": self.fisher_shares[i, k],
                        "afs": self.afs[i, k],
                        "half_variance": noise.half if noise else math.nan,
                        "precision": noise.precision if noise else math.nan,
                        "aps": self.aps[i, k],
                    }
                )
        return rows

    def feature_rows(self) -> Rows:
        """A row for each feature."""
        rows: Rows = []
        for layer, row in self.places.items():
            fisher = [self.fisher[place] for place in row]
            by_feature = feature_shares(fisher) or [torch.full_like(each, math.nan) for each in fisher]
            for place, values, afs in zip(row, fisher, by_feature, strict=True):
                for m, (value, share) in enumerate(zip(values.tolist(), afs.tolist(), strict=True)):
                    rows.append({"layer": layer, "column": place.column, "feature": m, "fisher": value, "afs": share})
        return rows

    def noise_rows(self) -> Rows:
        """A row for each variance that was tried."""
        return [
            {"column": place.column, "column_layer": place.layer, "variance": variance, "mean_score": score}
            for place, noise in self.perturbations.items()
            for variance, score in sorted(noise.scores.items())
        ]

    def write(self, folder: Path) -> list[Path]:
        """Write the tables and the picture into a folder; returns their paths."""
        # Imported here, because the start of a command does not need it.
        from kfrl.compare.plots import draw_shares

        tables = {"": self.rows(), "-features": self.feature_rows(), "-noise": self.noise_rows()}
        files = {folder / f"sensitivity{name}.csv": rows for name, rows in tables.items()}
        for path, rows in files.items():
            if not rows:
                path.unlink(missing_ok=True)  # of an earlier call
                continue
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(path, text.getvalue())
        panels = {"AFS": self.afs, "share of the Fisher": self.fisher_shares, "APS": self.aps}
        drawn = {title: values for title, values in panels.items() if not np.isnan(values).all()}
        picture = folder / "sensitivity.png"
        if drawn:
            draw_shares(drawn, list(self.places), self.columns, picture)
        return [*(path for path, rows in files.items() if rows), *([picture] if drawn else [])]


class ProgressiveRun:
    """The student of a finished or interrupted run of progressive nets, with its columns, and its game."""

    def __init__(self, path: Path) -> None:
        """Load the student.

        Raises:
            UserError: the folder is not that of a run, the run is of another method or has no student yet, or its
                game cannot be played.
        """
        folder = RunFolder.of_run(path)
        self.config = folder.read_config(TrainConfig)
        if self.config.method_name != "progressive":
            raise UserError(
                f"{path} was trained by {self.config.method_name}, whose net has no frozen columns to compare. Give a "
                "run of --method progressive."
            )
        self.agent: Teacher = load_teacher(str(path), RUNS, identify)[0]
        card, net = self.agent.card, self.agent.net
        if not isinstance(net, ProgressiveNet):
            raise UserError(f"{folder.student} is no progressive net: it has no frozen columns to compare.")
        self.net: ProgressiveNet = net
        find_game(card.game)
        self.protocol = Protocol.from_dict(card.protocol)
        policy_of(net, card.actions, action_set(self.protocol))

    def fisher(self, steps: int, seed: int) -> Iterator[FisherSums]:
        """Play with sampled actions, and add every observation to the sums.

        Args:
            steps: Agent steps of all games together, rounded up to a multiple of the games.
            seed: Seed of the games and of the actions.

        Returns:
            An iterator that does the work; each item is the sums so far.
        """
        games = min(SIDE_BY_SIDE, steps)
        envs = AtariEnvs(self.protocol, games, num_threads=min(cores(), games))
        played = torch.tensor([envs.actions.index(name) for name in self.agent.card.actions])
        generator = torch.Generator().manual_seed(stream(seed, 1))
        sums = FisherSums(self.net)
        obs = envs.reset(stream(seed, 0))
        for _ in range(-(-steps // games)):
            actions = sums.add(torch.from_numpy(obs), lambda logits: sample(logits, generator))
            obs = envs.step(played[actions].numpy()).obs
            yield sums

    def clean_and_random(self, episodes: int, seed: int) -> tuple[float, float]:
        """The mean raw scores of the student and of random play, over `episodes` games each."""
        played = action_set(self.protocol)
        clean = policy_of(self.net, self.agent.card.actions, played)
        uniform = torch.zeros(len(played))
        return self._score(clean, episodes, seed), self._score(lambda obs: uniform.expand(len(obs), -1), episodes, seed)

    def perturb(self, place: Place, deviation: Tensor, target: float, episodes: int, seed: int) -> Perturbation:
        """Find the noise in a layer of a column at which the score falls to `target`.

        Gaussian noise is added to the activations, new in every pass; its standard deviation is that of each feature,
        `deviation` (M,), times the root of the variance that is tried.
        """
        actions, played = self.agent.card.actions, action_set(self.protocol)

        def score(variance: float) -> float:
            generator = torch.Generator().manual_seed(stream(seed, 2))
            scale = math.sqrt(variance) * deviation.float()

            def noisy(at: Place, h: Tensor) -> Tensor:
                if at != place:
                    return h
                noise = torch.randn(h.shape, generator=generator)
                return h + noise * scale.reshape(-1, *[1] * (h.dim() - 2))

            return self._score(
                lambda obs: in_order(changed_logits(self.net, obs, noisy), actions, played), episodes, seed
            )

        return find_half(score, target)

    def _score(self, policy: Policy, episodes: int, seed: int) -> float:
        played = evaluate(policy, self.protocol, episodes=episodes, seed=seed, num_threads=cores())
        return played.summary.mean
