"""Stored answers of classifiers: the logits of teachers on every training image of a set, computed once.

Tensors of the file: `<name>/logits` (N, K) of each teacher, on the training images in order, without augmentation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.runs.cards import read_net
from kfrl.runs.provenance import commit, sha256
from kfrl.runs.streams import streaming
from kfrl.supervised.classifiers import Card, Teacher
from kfrl.supervised.data.batches import FileImages, Images, Loader, Normalisation
from kfrl.supervised.data.sets import Data
from kfrl.supervised.teachers import adapt

FORMAT = "kfrl-image-answers-1"


@dataclass(frozen=True)
class Answerer:
    """A classifier whose answers are stored."""

    name: str
    file: str
    """Its absolute path."""
    sha256: str
    card: Card


@dataclass(frozen=True)
class AnswersCard:
    """The card of classifiers' stored answers: the header of their file."""

    data: str
    count: int
    """N."""
    images_sha256: str
    """See `fingerprint`."""
    teachers: tuple[Answerer, ...]
    commit: str = "unknown"


def fingerprint(images: Images) -> str:
    """A checksum of labels and pixels; for images in files, of labels, file names and file sizes."""
    digest = hashlib.sha256(images.labels.cpu().numpy().tobytes())
    if isinstance(images, FileImages):
        for file in images.files:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    else:
        digest.update(images.pixels.cpu().contiguous().numpy().data)
    digest.update(str(tuple(images.shape)).encode())
    return digest.hexdigest()


def collect(path: Path, data: Data, teachers: Sequence[Teacher], batch_size: int, device: str = "cpu") -> Iterator[int]:
    """Compute the teachers' logits on every training image and write them to `path`, atomically.

    Args:
        path: The file.
        data: The set.
        teachers: Frozen classifiers of any classes.
        batch_size: Images in a forward pass.
        device: Where they run.

    Returns:
        An iterator that does the work, and yields the number of images that are done.
    """
    own = Normalisation.of(data.train.sample())
    asked = [adapt(teacher, data.shape, own) for teacher in teachers]
    card = AnswersCard(
        data.name,
        len(data.train),
        fingerprint(data.train),
        tuple(Answerer(t.name, str(t.path.absolute()), sha256(t.path), t.card) for t in teachers),
        commit(),
    )
    shapes = {f"{teacher.name}/logits": ("F32", (card.count, len(teacher.card.classes))) for teacher in teachers}
    loader = Loader(data.train.to(torch.device(device)), batch_size, own)
    for teacher in asked:
        teacher.net.to(device)
    with streaming(path, shapes, card, FORMAT) as rows, torch.no_grad():
        start = 0
        for batch in loader.ordered():
            end = start + len(batch.labels)
            for teacher in asked:
                rows[f"{teacher.name}/logits"][start:end] = teacher.net(batch.images).cpu().numpy()
            start = end
            yield start


class Absent(nn.Module):
    """Takes the place of a classifier's net if only its stored answers are given."""

    def forward(self, images: Tensor) -> Tensor:
        """Refuse, because there is no net.

        Raises:
            UserError: always.
        """
        raise UserError("This teacher has stored answers and no net. Give it by --teachers, without --answers.")


def read_answers(path: Path, data: Data) -> tuple[Teacher, ...]:
    """The teachers in a file, with stored answers for the training images of `data` and without nets.

    Raises:
        UserError: no such file, or answers for other images.
    """
    try:
        card, tensors = read_net(path, AnswersCard, FORMAT, with_tensors=True)
    except UserError as error:
        raise UserError(f"{error} `kfrl supervised collect` writes files of answers.") from None
    if (card.count, card.images_sha256) != (len(data.train), fingerprint(data.train)):
        raise UserError(
            f"{path} has answers for the {card.count:,} training images of {card.data}; the {len(data.train):,} of "
            f"{data.name} differ from them, or have another --image-size. Collect answers for these: kfrl supervised "
            f"collect --data {data.name} --teachers NAME --output FILE"
        )
    return tuple(
        Teacher(
            each.name, Absent(), each.card, Path(each.file), (), tensors[f"{each.name}/logits"], checksum=each.sha256
        )
        for each in card.teachers
    )
