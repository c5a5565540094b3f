"""The data sets: where their files are, what has to be in them, and what is usual in training on them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kfrl.errors import UserError, unknown
from kfrl.supervised.batches import Images, class_counts
from kfrl.supervised.files import File, fetch
from kfrl.supervised.readers import as_images, read_idx_pair

Files = Mapping[str, Path]
Splits = tuple[Images, Images]

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class ImageSet:
    """One row of the table."""

    title: str
    folder: str
    """Below the data folder."""
    files: tuple[File, ...]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """(C, H, W)"""
    counts: tuple[int, int]
    """Images for training and for the test."""
    read: Callable[[Files], Splits]
    augment: str = "none"
    """What --augment auto is."""
    net: str = "cifar-conv"
    """The student unless told otherwise."""


@dataclass(frozen=True)
class Data:
    """Images to learn and to be tested on, in memory."""

    name: str
    title: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    augment: str
    net: str
    notes: tuple[str, ...] = ()
    """What has to be known of the files."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.shape


def _idx(files: Files, prefix: str = "") -> Splits:
    names = [f"{prefix}{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    paths = [files[name] for name in names]
    return read_idx_pair(paths[0], paths[1]), read_idx_pair(paths[2], paths[3])


def _idx_files(address: str, checksums: Sequence[str]) -> tuple[File, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        File(f"{name}-ubyte.gz", f"{address}/{name}-ubyte.gz", f"md5:{checksum}")
        for name, checksum in zip(names, checksums, strict=True)
    )


def _digits(files: Files) -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "--data digits comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype("uint8")[:, None]
    whole = as_images(pixels, bunch.target, Path("sklearn.datasets.load_digits"))
    test = torch.arange(len(whole)) % 5 == 4
    return whole.take(~test), whole.take(test)


SETS: dict[str, ImageSet] = {
    "mnist": ImageSet(
        "MNIST",
        "mnist",
        _idx_files(
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        DIGITS,
        (1, 28, 28),
        (60_000, 10_000),
        _idx,
        net="mnist-mlp",
    ),
    "fashion-mnist": ImageSet(
        "Fashion-MNIST",
        "fashion-mnist",
        _idx_files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
        (1, 28, 28),
        (60_000, 10_000),
        _idx,
        net="mnist-mlp",
    ),
    "digits": ImageSet("scikit-learn's digits", "", (), DIGITS, (1, 8, 8), (1_438, 359), _digits, net="mnist-mlp"),
}
"""Every data set by name."""


def load_data(name: str, data_dir: Path | None = None) -> Data:
    """Load a data set into memory; its files are downloaded unless they are there.

    Args:
        name: A name of `SETS`; `NAME-half`: the first half of its classes; `NAME-no-CLASS`: its training images without
            one class, which stays among the test images.
        data_dir: Where the files are; the user's cache folder by default.

    Raises:
        UserError: no such data set, a file that cannot be had, or one that is damaged.
    """
    base, half, missing = _parse(name)
    known = SETS[base]
    files, notes = fetch(base, known.folder, known.files, data_dir)
    train, test = known.read(files)
    for split, count in ((train, known.counts[0]), (test, known.counts[1])):
        _check(base, known, split, count, list(files.values()))
    data = Data(name, known.title, known.classes, train, test, known.augment, known.net, tuple(notes))
    if half:
        data = _first_half(data)
    return _without(data, missing) if missing else data


def _parse(name: str) -> tuple[str, bool, str]:
    for base in sorted(SETS, key=len, reverse=True):
        found = re.fullmatch(rf"{re.escape(base)}(-half)?(?:-no-(.+))?", name, re.IGNORECASE)
        if found:
            return base, bool(found[1]), found[2] or ""
    raise unknown("data set", name, SETS, "Or give the path of a folder of images by class.")


def _check(name: str, known: ImageSet, split: Images, count: int, files: Sequence[Path]) -> None:
    held = ", ".join(map(str, files))
    if len(split) != count or split.shape != known.shape:
        raise UserError(
            f"The files of {name} are not whole, and were not used: expected {count:,} images of {known.shape}, found "
            f"{len(split):,} of {split.shape} in {held}. Delete them, and they will be downloaded again."
        )
    wrong = split.labels[(split.labels < 0) | (split.labels >= len(known.classes))]
    if len(wrong):
        raise UserError(
            f"The files of {name} were not used: {len(wrong):,} labels are outside its {len(known.classes)} classes, "
            f"e.g. {int(wrong[0])}, in {held}."
        )


def _first_half(data: Data) -> Data:
    kept = len(data.classes) // 2
    return replace(
        data,
        classes=data.classes[:kept],
        train=data.train.take(data.train.labels < kept),
        test=data.test.take(data.test.labels < kept),
    )


def _without(data: Data, missing: str) -> Data:
    folded = [name.casefold() for name in data.classes]
    if missing.casefold() not in folded:
        raise unknown(f"class of {data.title}", missing, data.classes)
    label = folded.index(missing.casefold())
    train = data.train.take(data.train.labels != label)
    left = class_counts(train.labels, data.classes)
    return replace(data, train=train, notes=(*data.notes, f"no training image shows {missing}; {sum(left):,} are left"))
