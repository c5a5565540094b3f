"""How many images a classifier gets right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F

from kfrl.errors import UserError
from kfrl.nets.memory_format import channels_last
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Loader, Normalisation
from kfrl.supervised.data.sets import Data
from kfrl.supervised.methods.base import Predictor
from kfrl.supervised.teachers import Adapter


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

    def to_dict(self, classes: Sequence[str] = ()) -> dict[str, Any]:
        """For `eval.json`, in percent; with the classes' names their accuracies too, None without an image."""
        shares = [None if math.isnan(share) else 100 * share for share in self.per_class]
        per_class = {"per_class_percent": dict(zip(classes, shares, strict=True))} if classes else {}
        return {
            "accuracy_percent": 100 * self.accuracy,
            "error_percent": 100 * (1 - self.accuracy),
            "correct": self.correct,
            "images": self.total,
            "loss": self.loss,
            **per_class,
        }


@torch.no_grad()
def evaluate(predict: Predictor, images: Loader, classes: int) -> Evaluation:
    """Count right answers, and take the mean cross-entropy. The nets behind `predict` have to be in evaluation mode.

    Whatever `predict` draws at random leaves torch's generator as it was.
    """
    right, total = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    loss = 0.0
    with torch.random.fork_rng():
        for batch in islice(images.ordered(), images.ranks.rank, None, images.ranks.world):
            logits = predict(batch.images)
            loss += float(F.cross_entropy(logits.float(), batch.labels, reduction="sum"))
            hits = logits.argmax(1) == batch.labels
            total += torch.bincount(batch.labels, minlength=classes).cpu()
            right += torch.bincount(batch.labels[hits], minlength=classes).cpu()
    right, total = images.ranks.total(right), images.ranks.total(total)
    loss = float(images.ranks.total(torch.tensor(loss, dtype=torch.float64)))
    return Evaluation(int(right.sum()), int(total.sum()), tuple((right / total).tolist()), loss / int(total.sum()))


def score_classifier(classifier: Teacher, data: Data, batch_size: int) -> Evaluation:
    """Evaluate a loaded classifier on the test images of a data set, made to fit if they are of another kind.

    Args:
        classifier: What is evaluated.
        data: Whose test images.
        batch_size: Images that go through the net at once.

    Raises:
        UserError: it knows other classes.
    """
    if classifier.card.classes != data.classes:
        raise UserError(
            f"{classifier.path} tells {len(classifier.card.classes)} classes apart "
            f"({', '.join(classifier.card.classes[:4])}, ...), and {data.name} has {len(data.classes)} others "
            f"({', '.join(data.classes[:4])}, ...): nothing to count."
        )
    card, net = classifier.card, classifier.net
    if data.shape == card.input_shape:
        normalise = Normalisation(card.mean, card.std)
    else:
        normalise = Normalisation.none(data.shape[0])
        net.register_forward_pre_hook(Adapter(data.shape, normalise, card))
    loader = Loader(data.test, batch_size, normalise, channels_last=channels_last(net))
    return evaluate(net, loader, len(data.classes))
