"""How many images a classifier gets right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from kfrl.supervised.batches import Loader
from kfrl.supervised.methods.base import Predictor


@dataclass(frozen=True)
class Evaluation:
    """Right answers on a set of images."""

    correct: int
    total: int
    per_class: tuple[float, ...]
    """Accuracy on the images of each class; NaN without one."""
    loss: float
    """Mean cross-entropy, in nats."""

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.correct / self.total

    def to_dict(self) -> dict[str, Any]:
        """For `eval.json`, in percent."""
        return {
            "accuracy_percent": 100 * self.accuracy,
            "error_percent": 100 * (1 - self.accuracy),
            "correct": self.correct,
            "images": self.total,
            "loss": self.loss,
        }


@torch.no_grad()
def evaluate(predict: Predictor, images: Loader, classes: int) -> Evaluation:
    """Count right answers, and take the mean cross-entropy. The nets behind `predict` have to be in evaluation mode.

    Whatever `predict` draws at random leaves torch's generator as it was.
    """
    right, total = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    loss = 0.0
    with torch.random.fork_rng():
        for batch in images.ordered():
            logits = predict(batch.images)
            loss += float(F.cross_entropy(logits.float(), batch.labels, reduction="sum"))
            hits = logits.argmax(1) == batch.labels
            total += torch.bincount(batch.labels, minlength=classes).cpu()
            right += torch.bincount(batch.labels[hits], minlength=classes).cpu()
    return Evaluation(int(right.sum()), int(total.sum()), tuple((right / total).tolist()), loss / int(total.sum()))
