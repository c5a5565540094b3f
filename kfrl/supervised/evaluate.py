"""Accuracy and loss of classifiers on images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F

from kfrl.errors import UserError, shortened
from kfrl.nets.memory_format import channels_last
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.data.batches import Loader, Normalisation
from kfrl.supervised.data.sets import Data
from kfrl.supervised.methods.base import Predictor
from kfrl.supervised.teachers import Adapter


@dataclass(frozen=True)
class ImageEvaluation:
    """A classifier's accuracy and loss on a set of images."""

    correct: int
    total: int
    per_class: tuple[float, ...]
    """Accuracy on the images of each class; NaN for a class without images."""
    loss: float
    """Mean cross-entropy, in nats."""

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.correct / self.total

    def to_dict(self, classes: Sequence[str] = ()) -> dict[str, Any]:
        """For `eval.json`, in percent; with class names also each class's accuracy, None for a class without images."""
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
def evaluate(predict: Predictor, images: Loader, classes: int) -> ImageEvaluation:
    """Compute accuracy and mean cross-entropy. The nets behind `predict` have to be in evaluation mode.

    Random draws of `predict` do not change the state of torch's generator.
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
    return ImageEvaluation(int(right.sum()), int(total.sum()), tuple((right / total).tolist()), loss / int(total.sum()))


def score_classifier(classifier: Teacher, data: Data, batch_size: int) -> ImageEvaluation:
    """Evaluate a loaded classifier on the test images of a data set, converted if they have another shape.

    Args:
        classifier: The classifier.
        data: The data set.
        batch_size: Images in a forward pass.

    Raises:
        UserError: the classifier has other classes.
    """
    if classifier.card.classes != data.classes:
        raise UserError(
            f"{classifier.path} has {len(classifier.card.classes)} classes ({shortened(classifier.card.classes, 4)}), "
            f"and {data.name} has {len(data.classes)} others ({shortened(data.classes, 4)}). Give --data with images "
            "of the classifier's classes."
        )
    card, net = classifier.card, classifier.net
    if data.shape == card.input_shape:
        normalise = Normalisation(card.mean, card.std)
    else:
        normalise = Normalisation.none(data.shape[0])
        net.register_forward_pre_hook(Adapter(data.shape, normalise, card))
    loader = Loader(data.test, batch_size, normalise, channels_last=channels_last(net))
    return evaluate(net, loader, len(data.classes))
