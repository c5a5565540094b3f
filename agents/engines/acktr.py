"""ACKTR: A2C with natural gradients by K-FAC and a trust region (Wu et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.batch import Rollout
from agents.config import TrainConfig
from agents.engines.settings import ACKTRConfig
from agents.engines.shared import SharedModel, clipped_norm
from agents.engines.synchronous import A2CTrainer
from agents.engines.update import Optimiser, Report, Updater
from kfrl.losses.actor_critic import log_prob
from kfrl.optim.groups import ParameterGroup
from kfrl.optim.kfac import COLD_UPDATES, KroneckerFactors, factored_layers, trust

PLAIN_MEAN = 10
MOMENTUM = 0.9
FIRST_UPDATES = COLD_UPDATES + 1
"""Updates before the usual ones: the cold ones, and the natural one before which the factors are decomposed for the
first time, whatever the period."""


def steady(config: TrainConfig) -> tuple[int, int]:
    """Agent steps before the usual updates, and agent steps between two decompositions of the factors."""
    samples = config.shape.envs_per_worker * config.shape.t_max
    return FIRST_UPDATES * samples, config.acktr.inverse_period * samples


def by_kfac(groups: Sequence[ParameterGroup]) -> list[nn.Parameter]:
    """The trained parameters without those of groups with plain gradient descent (`sgd`)."""
    return [parameter for group in groups if group.sgd is None for parameter in group.parameters]


class NaturalGradient:
    """Momentum on natural gradients; the first updates use plain, clipped gradients."""

    def __init__(
        self,
        shared: SharedModel,
        groups: Sequence[ParameterGroup],
        factors: KroneckerFactors,
        config: ACKTRConfig,
        max_grad_norm: float,
    ) -> None:
        """Train the parameters of `shared`. Its `exp_avg` holds the momentum, its `adam_steps` the update counts."""
        self._groups, self._factors, self._config, self._max_grad_norm = groups, factors, config, max_grad_norm
        sizes = [sum(p.numel() for p in group.parameters) for group in groups]
        self._parameters, self._momentum = (torch.split(t, sizes) for t in (shared.parameters, shared.exp_avg))
        self._sizes, self._steps = sizes, shared.adam_steps

    @torch.no_grad()
    def push(self, grads: Tensor, lr: float) -> float | None:
        """Apply one update; see `Optimiser`. `grads` must be the storage of the parameters' `.grad`."""
        norm = float(grads.norm())
        if not math.isfinite(norm):
            return None
        scale = self._cold(grads) if self._steps.max() < COLD_UPDATES else self._natural(grads, lr)
        if scale is None:
            return None
        parts = zip(self._groups, torch.split(grads, self._sizes), self._parameters, self._momentum, strict=True)
        for index, (group, grad, parameters, momentum) in enumerate(parts):
            if group.lazy and not grad.any():
                continue
            if group.sgd is not None:
                parameters.sub_(grad, alpha=group.sgd)
                continue
            parameters.sub_(momentum.mul_(MOMENTUM).add_(grad), alpha=scale * lr * group.lr_scale)
            self._steps[index] += 1
        return norm

    def _cold(self, grads: Tensor) -> float:
        clipped_norm(grads, self._max_grad_norm)
        return 1.0

    def _natural(self, grads: Tensor, lr: float) -> float | None:
        """Replace the gradients by natural ones in the trust region; None if <V, dW> is not finite or not above 0."""
        if self._steps.max() == COLD_UPDATES:
            for momentum in self._momentum:
                momentum.zero_()
        due = int(self._steps.max()) % self._config.inverse_period == 0
        if due or not self._factors.ready:
            self._factors.decompose()
        if not self._factors.ready:
            return None
        plain = [grad.clone() if group.sgd is not None else None for group, grad in self._split(grads)]
        quadratic = self._factors.natural(self._config.damping)
        if not (math.isfinite(quadratic) and quadratic > 0):
            return None
        grads.mul_(trust(quadratic, lr, self._config.trust_region))
        for kept, (_, grad) in zip(plain, self._split(grads), strict=True):
            if kept is not None:
                grad.copy_(kept)
        return 1.0 - MOMENTUM

    def _split(self, grads: Tensor) -> list[tuple[ParameterGroup, Tensor]]:
        return list(zip(self._groups, torch.split(grads, self._sizes), strict=True))


def log_likelihood(logits: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) log p of an action and a value drawn from the net's output distribution, for its Fisher matrix.

    The value has a normal distribution with mean V and standard deviation 1/2, as in the published code, and is
    independent of the action. The draws use their own generator, not that of the games.
    """
    actions = torch.multinomial(logits.detach().softmax(1), 1, generator=generator).squeeze(1)
    drawn = values.detach() + torch.randn(values.shape, generator=generator, device=values.device)
    return log_prob(logits, actions) - (values - drawn).square()


class ACKTRTrainer(A2CTrainer):
    """One natural-gradient update for each rollout."""

    @property
    def steady(self) -> tuple[int, int]:
        """See `steady` of this module."""
        return steady(self.run.config)

    def optimiser(self) -> Optimiser:
        """Momentum on natural gradients."""
        config = self.run.config
        for name, tensor in self.optimiser_state.items():
            self.optimiser_state[name] = tensor.to(config.device)
        layers = factored_layers(self.net, by_kfac(self.groups))
        self.factors = KroneckerFactors(
            layers, self.optimiser_state, plain_mean=PLAIN_MEAN, decay=config.acktr.stats_decay
        )
        self._generator = torch.Generator(config.device).manual_seed(config.seed + int(self.optimiser_state["count"]))
        return NaturalGradient(self.shared, self.groups, self.factors, config.acktr, config.shape.max_grad_norm)

    def update(self, rollout: Rollout, updater: Updater, progress: float, report: Report) -> None:
        """Update the factors with some of the rollout's observations, then make the update."""
        self._observe(rollout)
        super().update(rollout, updater, progress, report)

    def _observe(self, rollout: Rollout) -> None:
        # By chance, since at every k-th step of a rollout it would be the same games' turn.
        order = torch.randperm(len(rollout.obs), generator=self._generator, device=self._generator.device)
        rows = order[: self.run.config.acktr.fisher_samples].to(rollout.obs.device)
        context = tuple(part[rows] for part in rollout.context)
        with torch.enable_grad(), self.factors.recording():
            output = self.method.forward(self.net, rollout.obs[rows], context)
        self.factors.observe(log_likelihood(output.logits, output.values, self._generator))
