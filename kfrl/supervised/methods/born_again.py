"""Born-again nets (Furlanello et al., ICML 2018): the same net again and again, each taught by the one before."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import Count, Direction
from kfrl.losses.distillation import soft_target_loss
from kfrl.optim.groups import ParameterGroup
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Method, Predictor, Progress, Stage, Task, ensemble


@dataclass(frozen=True)
class Settings:
    """Born-again nets."""

    generations: Count = 3
    """Number of students after the first net. Each learns from the one before, for --epochs epochs."""
    kl_direction: Direction = "forward"
    """forward: KL[earlier generation || student], as in the paper; reverse: KL[student || earlier generation]; mixed:
    the mean of both."""


class BornAgain(Method[nn.ModuleList]):
    """Generation 0 learns from the labels, generation k from the labels and from generation k - 1, at T = 1."""

    Settings = Settings

    def __init__(self, config: SupervisedConfig) -> None:
        """Start with generation 0."""
        super().__init__(config)
        self._generation = 0

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.ModuleList:
        """All generations, each with fresh weights."""
        return nn.ModuleList(task.make_net() for _ in range(self.own.generations + 1))

    def stages(self, net: nn.ModuleList) -> Sequence[Stage]:
        """One generation after another, `epochs` each; the epoch that --keep chooses teaches the next."""
        return tuple(
            Stage(
                f"generation {index}", self.config.epochs, (ParameterGroup(tuple(member.parameters())),), complete=True
            )
            for index, member in enumerate(net)
        )

    def train_mode(self, net: nn.ModuleList, stage: int) -> None:
        """Only the running generation trains; the one before is its frozen teacher."""
        self._generation = stage
        net.eval()
        net[stage].train()

    def losses(self, net: nn.ModuleList, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """L(y, f_k) + L(f_{k-1}, f_k); the second term is without the teacher's entropy, a constant."""
        logits = net[progress.stage](batch.images)
        terms = {"task": F.cross_entropy(logits, batch.labels)}
        if progress.stage > 0:
            with torch.no_grad():
                taught = net[progress.stage - 1](batch.images)
            terms["born_again"] = soft_target_loss(logits, taught, 1.0, self.own.kl_direction).mean()
        return terms

    def export(self, net: nn.ModuleList) -> nn.Module:
        """The generation that trains; at the end of the run the last."""
        return copy.deepcopy(net[self._generation])

    def others(self, net: nn.ModuleList, final: bool) -> Mapping[str, Predictor]:
        """At the end every earlier generation, and the ensembles of generations 1 to k."""
        if not final:
            return {}
        members = list(net)
        earlier: dict[str, Predictor] = {f"generation_{index}": member for index, member in enumerate(members[:-1])}
        return earlier | {f"ensemble_{k}": ensemble(members[1 : k + 1]) for k in range(2, len(members))}


METHOD = BornAgain
