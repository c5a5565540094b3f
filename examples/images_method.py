"""Your own method for images in your own file: the confidence penalty (Pereyra et al. 2017).

kfrl supervised train --method examples/images_method.py --data digits --penalty 0.2
kfrl supervised train --method examples/images_method.py --help
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import NonNegative
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Method, Progress


class ConfidencePenalty(Method):
    """Cross-entropy with the labels, and a penalty on outputs with low entropy."""

    @dataclass(frozen=True)
    class Settings:
        """Settings of the method; they are flags, and are written into the run's config.yaml."""

        penalty: NonNegative = 0.1
        """beta, the weight of the negative entropy."""

    def losses(self, net: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The terms of the loss; their sum is minimised."""
        log_probs = net(batch.images).log_softmax(1)
        entropy = -(log_probs.exp() * log_probs).sum(1).mean()
        return {"task": F.nll_loss(log_probs, batch.labels), "confidence": -self.own.penalty * entropy}


METHOD = ConfidencePenalty
