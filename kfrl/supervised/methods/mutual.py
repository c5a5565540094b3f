"""Deep mutual learning (Zhang et al., CVPR 2018): nets that learn from the labels and from each other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import Direction, split_names
from kfrl.losses.distillation import mutual_loss
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Method, Predictor, Progress, Task, ensemble


@dataclass(frozen=True)
class Settings:
    """Deep mutual learning."""

    peers: str = ""
    """Nets that learn together with the student, by name, comma-separated. Default: one net like it."""
    kl_direction: Direction = "forward"
    """forward: KL[peer || own], as in the paper; reverse: KL[own || peer]; mixed: the mean of both."""


class Mutual(Method[nn.ModuleList]):
    """L_i = CE_i + 1/(K - 1) sum_j KL[p_j || p_i], for the student (net 1) and its K - 1 peers at once."""

    Settings = Settings

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.ModuleList:
        """The student first, then the peers.

        Raises:
            UserError: a peer of an unknown net.
        """
        peers = split_names(self.own.peers) or (task.net,)
        return nn.ModuleList(task.make_net(name) for name in (task.net, *peers))

    def losses(self, net: nn.ModuleList, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq. 8 of the paper for every net; the peers' logits are constants."""
        logits = [member(batch.images) for member in net]
        targets = [one.detach() for one in logits]
        terms = {}
        for index, own in enumerate(logits):
            suffix = f"_{index + 1}" if index else ""
            terms[f"task{suffix}"] = F.cross_entropy(own, batch.labels)
            peers = targets[:index] + targets[index + 1 :]
            terms[f"mutual{suffix}"] = mutual_loss(own, peers, self.own.kl_direction).mean()
        return terms

    def export(self, net: nn.ModuleList) -> nn.Module:
        """The student."""
        return copy.deepcopy(net[0])

    def others(self, net: nn.ModuleList, final: bool) -> Mapping[str, Predictor]:
        """The peers, and at the end all nets together."""
        peers: dict[str, Predictor] = {f"net_{index}": peer for index, peer in enumerate(net[1:], start=2)}
        return {**peers, "ensemble": ensemble(list(net))} if final else peers


METHOD = Mutual
