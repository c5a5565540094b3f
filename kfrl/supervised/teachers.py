"""Find a teacher among earlier runs, and convert the student's images to its input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import load_config
from kfrl.errors import UserError, missing_file, unknown, user_path
from kfrl.nets.images.classifier import LUMA
from kfrl.runs.folder import STUDENT_FILE, RunFolder
from kfrl.supervised.classifiers import Card, Teacher, load_classifier, read_card
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch, Normalisation
from kfrl.supervised.data.sets import SETS, is_data_set


def find_classifier(reference: str, runs: Path) -> Path:
    """The file of a teacher; `reference` is the path of a file or of a run, or a data set of the runs below `runs`.

    Of several runs on a data set, the one that is best on the validation images is chosen.

    Raises:
        UserError: nothing of that name (the message names the nearest), or runs with different validation images.
    """
    path = user_path(reference)
    if path.is_dir():
        path = path / STUDENT_FILE
        if not path.exists():
            raise UserError(f"{reference} is a folder without a {STUDENT_FILE}: not a run of kfrl.")
    if path.is_file():
        return path
    if path.suffix == ".safetensors" or "/" in reference:
        raise missing_file(path)
    found = _classifiers(runs)
    same = {file: card for file, card in found.items() if card.data.casefold() == reference.casefold()}
    if not same:
        raise _not_learned(reference, sorted({card.data for card in found.values()}))
    _check_one_ranking(reference, same)
    return max(same, key=lambda file: same[file].validation_accuracy or 0.0)


def _check_one_ranking(reference: str, found: Mapping[Path, Card]) -> None:
    """Refuse to rank runs whose accuracies are on different validation images."""
    best: dict[str, tuple[float, Path]] = {}
    for file, card in found.items():
        if card.validation_accuracy is not None:
            images, scored = _validation_images(file.parent), (card.validation_accuracy, file.parent)
            best[images] = max(best.get(images, scored), scored)
    if len(best) > 1:
        held = "; ".join(f"{run}: {100 * accuracy:.1f} % of {images}" for images, (accuracy, run) in best.items())
        raise UserError(
            f"Several of your runs of {reference} have accuracies on different validation images, so none is the best: "
            f"{held}. Give the folder of one."
        )


def _validation_images(run: Path) -> str:
    """The settings that determine the validation images of a run, as flags."""
    try:
        config = load_config(RunFolder(run).config, SupervisedConfig)
    except UserError:
        return "unknown images"
    # The name of a set may be spelt in several ways; folders of the same name are different sets.
    folder = f"--data {config.data} " if "/" in config.data else ""
    count = "" if config.train_images is None else f" --train-images {config.train_images}"
    return f"{folder}--validation {config.validation:g}{count}"


def _not_learned(reference: str, learned: Sequence[str]) -> UserError:
    so_far = f"learned so far: {', '.join(learned) or 'nothing'}"
    if is_data_set(reference):
        return UserError(
            f"No run of yours has learned {reference} ({so_far}). Train one first: kfrl supervised train --data "
            f"{reference}; or give the path of a run."
        )
    hint = f"A teacher is the data set of one of your runs ({so_far}), or the path of a run."
    return unknown("teacher", reference, {*learned, *SETS}, hint)


def _classifiers(runs: Path) -> dict[Path, Card]:
    found = {}
    for path in sorted(runs.glob(f"*/*/*/{STUDENT_FILE}")):
        try:
            found[path] = read_card(path)
        except UserError:
            continue  # an agent of the RL side, or a file that cannot be read
    return found


def settings_of(student: Path, card: Card) -> SupervisedConfig:
    """The settings of the run that a classifier's file lies in; of a file alone the defaults, with its data set."""
    config = student.parent / "config.yaml"
    return load_config(config, SupervisedConfig) if config.is_file() else SupervisedConfig(data=card.data)


def load_classifiers(references: Iterable[str], runs: Path) -> tuple[Teacher, ...]:
    """Load every teacher; of two of the same data set the second is named `<data>-2`, and so on."""
    teachers: list[Teacher] = []
    for reference in references:
        loaded = load_classifier(find_classifier(reference, runs))
        same = sum(teacher.card.data == loaded.card.data for teacher in teachers)
        teachers.append(replace(loaded, name=loaded.name + (f"-{same + 1}" if same else "")))
    return tuple(teachers)


class Adapter:
    """Converts a student's normalised images to the input of a teacher of other images; a forward pre-hook."""

    def __init__(self, shape: tuple[int, int, int], own: Normalisation, card: Card) -> None:
        """Prepare for student images of `shape` (C, H, W), normalised by `own`.

        Raises:
            UserError: the numbers of channels differ, and are not 1 and 3.
        """
        self.name = card.data
        self.student_shape, self.shape = shape, card.input_shape
        if shape[0] != card.input_shape[0] and {shape[0], card.input_shape[0]} != {1, 3}:
            raise UserError(
                f"Teacher {card.data!r} takes {card.input_shape[0]} channels and the student {shape[0]}: only gray (1) "
                "and RGB (3) images can be converted into each other."
            )
        self._own, self._theirs = own, Normalisation(card.mean, card.std)

    @property
    def steps(self) -> list[str]:
        """The conversions of an image, as text; empty if none is needed."""
        words = []
        if self.student_shape[0] != self.shape[0]:
            words.append("gray to RGB" if self.shape[0] == 3 else "RGB to gray")
        if self.student_shape[1:] != self.shape[1:]:
            words.append("resized {}x{} -> {}x{}".format(*self.student_shape[1:], *self.shape[1:]))
        if words or self._own != self._theirs:
            words.append("normalised for the teacher")
        return words

    def __call__(self, net: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """(B, C, H, W) of the student -> (B, C', H', W') of the teacher."""
        images: Tensor = inputs[0]
        images = _affine(images, self._own.std, self._own.mean)
        if self.shape[0] > images.shape[1]:
            images = images.expand(-1, self.shape[0], -1, -1)
        elif self.shape[0] < images.shape[1]:
            images = (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        if images.shape[2:] != self.shape[1:]:
            images = F.interpolate(images, self.shape[1:], mode="bilinear", align_corners=False, antialias=True)
        scale = [1 / std for std in self._theirs.std]
        shift = [-mean / std for mean, std in zip(self._theirs.mean, self._theirs.std, strict=True)]
        return (_affine(images, scale, shift),)


def _affine(images: Tensor, scale: Iterable[float], shift: Iterable[float]) -> Tensor:
    return images * images.new_tensor(tuple(scale))[:, None, None] + images.new_tensor(tuple(shift))[:, None, None]


def adapt(teacher: Teacher, shape: tuple[int, int, int], own: Normalisation) -> Teacher:
    """Make a teacher's net accept the student's images, by a hook that converts them if they differ."""
    adapter = Adapter(shape, own, teacher.card)
    if adapter.steps:
        teacher.net.register_forward_pre_hook(adapter)
    return replace(teacher, adapted=tuple(adapter.steps))


@torch.no_grad()
def teacher_logits(teacher: Teacher, batch: Batch) -> Tensor:
    """Logits (B, classes) of a frozen teacher on the student's images: stored, or by a forward pass."""
    if teacher.answers is not None:
        return teacher.answers[batch.rows]
    logits: Tensor = teacher.net(batch.images)
    return logits
