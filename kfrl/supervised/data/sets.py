"""The data sets: addresses, checksums and expected content of their files, and their usual training settings."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kfrl.errors import UserError, shortened, unknown, user_path
from kfrl.supervised.config import Augment, SupervisedConfig
from kfrl.supervised.data.batches import Images, split_off
from kfrl.supervised.data.download import File, fetch
from kfrl.supervised.data.folders import ARCHIVES, read_folder, resized
from kfrl.supervised.data.readers import (
    Content,
    as_images,
    read_cifar,
    read_emnist,
    read_idx_pair,
    read_stl10,
    read_svhn,
)

Files = Mapping[str, Path]

DIGITS = tuple(string.digits)
CIFAR_10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR_100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()
)
STL_10 = tuple("airplane bird car cat deer dog horse monkey ship truck".split())
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@dataclass(frozen=True)
class ImageSet:
    """A data set that kfrl knows by name."""

    title: str
    folder: str
    """Its folder below the data folder."""
    files: tuple[File, ...]
    read: Callable[[Files], Content]
    shape: tuple[int, int, int]
    """(C, H, W)"""
    num_classes: int
    counts: tuple[int, int]
    """Images for training and for the test."""
    augment: Augment
    """The augmentation of --augment auto."""
    net: str
    """The student's default net."""


@dataclass(frozen=True)
class Data:
    """A loaded data set."""

    name: str
    title: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    augment: Augment
    net: str
    validation: Images | None = None
    """The data set's own validation images."""
    notes: tuple[str, ...] = ()
    """Remarks on the files."""
    groups: Tensor | None = None
    """(N,) int64, the group of each training image, which names its order in `split`. Default: its label."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.shape

    def split(self, share: float, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Rows of the training images to learn from, and rows that are held back; see `split_off`."""
        return split_off(_groups(self), share, count=count)


def _groups(data: Data) -> Tensor:
    return data.train.labels if data.groups is None else data.groups


# --- reading ------------------------------------------------------------------------------------------------

_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _idx(classes: tuple[str, ...], files: Files) -> Content:
    paths = [files[f"{part}-ubyte.gz"] for part in _PARTS]
    return Content(read_idx_pair(paths[0], paths[1]), read_idx_pair(paths[2], paths[3]), classes)


def _notmnist(files: Files) -> Content:
    images, labels = files.values()
    whole = read_idx_pair(images, labels)
    train, test = split_off(whole.labels, 0.2, "test")
    return Content(whole.take(train), whole.take(test), tuple("ABCDEFGHIJ"))


def _emnist(part: str, classes: tuple[str, ...], first_label: int, files: Files) -> Content:
    return Content(*read_emnist(files["gzip.zip"], part, first_label), classes)


def _cifar(classes: tuple[str, ...], train: Sequence[str], test: str, labels: int, files: Files) -> Content:
    (path,) = files.values()
    return Content(*read_cifar(path, train, test, labels), classes)


def _svhn(parts: Sequence[str], files: Files) -> Content:
    train = [read_svhn(files[f"{part}_32x32.mat"]) for part in parts]
    whole = Images(torch.cat([part.pixels for part in train]), torch.cat([part.labels for part in train]))
    # Each part is split apart, so that the extra images do not change which of the others are held back.
    groups = torch.cat([part.labels + len(DIGITS) * index for index, part in enumerate(train)])
    return Content(whole, read_svhn(files["test_32x32.mat"]), DIGITS, groups=groups)


def _stl10(files: Files) -> Content:
    return Content(*read_stl10(files["stl10_binary.tar.gz"]), STL_10)


def _tiny_imagenet(files: Files) -> Content:
    return read_folder(files["tiny-imagenet-200.zip"])


def _digits(files: Files) -> Content:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "--data digits comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    bunch = load_digits()
    whole = as_images((bunch.images * (255 / 16)).round().astype(np.uint8)[:, None], bunch.target)
    test = torch.arange(len(whole)) % 5 == 4
    return Content(whole.take(~test), whole.take(test), DIGITS)


# --- the table ----------------------------------------------------------------------------------------------


def _idx_files(address: str, *checksums: str) -> tuple[File, ...]:
    return tuple(
        File(f"{part}-ubyte.gz", f"{address}/{part}-ubyte.gz", f"md5:{checksum}")
        for part, checksum in zip(_PARTS, checksums, strict=True)
    )


def _file(address: str, name: str, md5: str) -> tuple[File]:
    return (File(name, f"{address}/{name}", f"md5:{md5}"),)


_MNIST = _idx_files(
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
_FASHION = _idx_files(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
_NOTMNIST = (
    *_file(
        "https://github.com/davidflanagan/notMNIST-to-MNIST/raw/master",
        "t10k-images-idx3-ubyte.gz",
        "2c87c839a4ef9b238846600eec8c35b7",
    ),
    *_file(
        "https://github.com/davidflanagan/notMNIST-to-MNIST/raw/master",
        "t10k-labels-idx1-ubyte.gz",
        "7ea9118cbafd0f6e3ee2ad771d782a01",
    ),
)
_EMNIST = _file("https://biometrics.nist.gov/cs_links/EMNIST", "gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e")
_TORONTO = "https://www.cs.toronto.edu/~kriz"
_SVHN = (
    *_file("http://ufldl.stanford.edu/housenumbers", "train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    *_file("http://ufldl.stanford.edu/housenumbers", "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
)
_SVHN_EXTRA = _file("http://ufldl.stanford.edu/housenumbers", "extra_32x32.mat", "a93ce644f1a588dc4d68dda5feec44a7")
_GRAY, _COLOUR = (1, 28, 28), (3, 32, 32)

SETS: dict[str, ImageSet] = {
    "mnist": ImageSet(
        "MNIST", "mnist", _MNIST, partial(_idx, DIGITS), _GRAY, 10, (60_000, 10_000), "none", "mnist-mlp"
    ),
    "fashion-mnist": ImageSet(
        "Fashion-MNIST",
        "fashion-mnist",
        _FASHION,
        partial(_idx, FASHION),
        _GRAY,
        10,
        (60_000, 10_000),
        "none",
        "mnist-mlp",
    ),
    "notmnist": ImageSet(
        "notMNIST, its 10,000 letters of the test part",
        "notmnist",
        _NOTMNIST,
        _notmnist,
        _GRAY,
        10,
        (8_000, 2_000),
        "none",
        "mnist-mlp",
    ),
    "emnist-letters": ImageSet(
        "EMNIST letters",
        "emnist",
        _EMNIST,
        partial(_emnist, "letters", tuple(string.ascii_uppercase), 1),
        _GRAY,
        26,
        (124_800, 20_800),
        "none",
        "mnist-mlp",
    ),
    "emnist-digits": ImageSet(
        "EMNIST digits",
        "emnist",
        _EMNIST,
        partial(_emnist, "digits", DIGITS, 0),
        _GRAY,
        10,
        (240_000, 40_000),
        "none",
        "mnist-mlp",
    ),
    "cifar-10": ImageSet(
        "CIFAR-10",
        "cifar-10",
        _file(_TORONTO, "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        partial(
            _cifar,
            CIFAR_10,
            tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
            "cifar-10-batches-bin/test_batch.bin",
            1,
        ),
        _COLOUR,
        10,
        (50_000, 10_000),
        "crop-flip",
        "cifar-conv-128",
    ),
    "cifar-100": ImageSet(
        "CIFAR-100",
        "cifar-100",
        _file(_TORONTO, "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        partial(_cifar, CIFAR_100, ("cifar-100-binary/train.bin",), "cifar-100-binary/test.bin", 2),
        _COLOUR,
        100,
        (50_000, 10_000),
        "crop-flip",
        "cifar-conv-128",
    ),
    "svhn": ImageSet(
        "SVHN",
        "svhn",
        _SVHN,
        partial(_svhn, ("train",)),
        _COLOUR,
        10,
        (73_257, 26_032),
        "none",
        "cifar-conv-128",
    ),
    "svhn-extra": ImageSet(
        "SVHN with its extra images",
        "svhn",
        (*_SVHN, *_SVHN_EXTRA),
        partial(_svhn, ("train", "extra")),
        _COLOUR,
        10,
        (604_388, 26_032),
        "none",
        "cifar-conv-128",
    ),
    "stl-10": ImageSet(
        "STL-10, its labelled images",
        "stl-10",
        _file("http://ai.stanford.edu/~acoates/stl10", "stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"),
        _stl10,
        (3, 96, 96),
        10,
        (5_000, 8_000),
        "crop-flip",
        "stl-conv-32",
    ),
    "tiny-imagenet": ImageSet(
        "Tiny-ImageNet, tested on its val part",
        "tiny-imagenet",
        _file("http://cs231n.stanford.edu", "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
        _tiny_imagenet,
        (3, 64, 64),
        200,
        (100_000, 10_000),
        "crop-flip",
        "resnet-20",
    ),
    "digits": ImageSet(
        "scikit-learn's digits", "digits", (), _digits, (1, 8, 8), 10, (1_438, 359), "none", "mnist-mlp"
    ),
}
"""Every data set by name, with the addresses and checksums of its publisher's files."""


# --- loading ------------------------------------------------------------------------------------------------


def load_data(name: str, data_dir: Path | None = None, image_size: int | None = None, memory: float = math.inf) -> Data:
    """Load a data set; missing files are downloaded.

    Args:
        name: A name of `SETS`, or the path of a folder or archive of images by class. With `-half` or
            `-other-half` after it, the first half of its classes or the others; with `-no-CLASS`, its images for
            training and validation without one class, which stays among the test images.
        data_dir: Where the files are; the user's cache folder by default.
        image_size: Resize all images to this height and width.
        memory: Bytes; see `read_folder`.

    Raises:
        UserError: an unknown data set, a file that cannot be downloaded, or a damaged file.
    """
    base, half, missing = _parse(name)
    data = _load_set(base, data_dir, image_size) if base in SETS else _load_folder(user_path(base), image_size, memory)
    if half:
        data = _half(data, half)
    return _without(data, missing) if missing else data


def check_memory(memory_gb: float, *names: str) -> None:
    """Refuse a limit of memory that has no effect.

    Args:
        memory_gb: The setting.
        names: The data sets that are loaded; "" is none.

    Raises:
        UserError: no data set is a folder.
    """
    if memory_gb != SupervisedConfig.memory_gb and not any(map(_is_folder, names)):
        raise UserError(
            f"--memory-gb {memory_gb:g} is for a folder of images, whose files stay where they are, and "
            f"{' and '.join(filter(None, names))} is none: named sets and archives are always loaded. Leave it out."
        )


def _is_folder(name: str) -> bool:
    return not is_data_set(name) and any(user_path(base).is_dir() for base, _, _ in _readings(name) if base)


def absolute(name: str) -> str:
    """The name of a data set for any working folder: a path becomes absolute."""
    base, _, _ = _parse(name)
    return name.casefold() if base in SETS else f"{user_path(base).absolute()}{name[len(base) :]}"


def _parse(name: str) -> tuple[str, str, str]:
    """Divide a name into the set or path, the half, and the class that is left out."""
    for base, half, missing in _readings(name):
        if base.casefold() in SETS:
            return base.casefold(), half, missing
        if user_path(base).exists():
            return base, half, missing
    raise unknown("data set", name, SETS, "Or give the path of a folder of images by class.")


def _readings(name: str) -> list[tuple[str, str, str]]:
    found = re.fullmatch(r"(.+?)(-half|-other-half)?(?:-no-([^/]+))?", name)
    return [(name, "", "")] + ([(found[1], found[2] or "", found[3] or "")] if found else [])


def is_data_set(name: str) -> bool:
    """Whether `name` is one of `SETS`, or a part of one."""
    return any(base.casefold() in SETS for base, _, _ in _readings(name))


def _load_set(name: str, data_dir: Path | None, image_size: int | None) -> Data:
    known = SETS[name]
    files, notes = fetch(name, known.folder, known.files, data_dir)
    held = known.read(files)
    for split, count in ((held.train, known.counts[0]), (held.test, known.counts[1])):
        _check(name, known, split, count, files)
    train, test = (split if image_size is None else resized(split, image_size) for split in (held.train, held.test))
    notes = (*notes, *held.notes)
    return Data(name, known.title, held.classes, train, test, known.augment, known.net, notes=notes, groups=held.groups)


def _check(name: str, known: ImageSet, split: Images, count: int, files: Files) -> None:
    held = ", ".join(map(str, files.values()))
    if len(split) != count or split.shape != known.shape:
        raise UserError(
            f"The files of {name} are incomplete, and were not used: expected {count:,} images of {known.shape}, found "
            f"{len(split):,} of {split.shape} in {held}. Delete them, and they will be downloaded again."
        )
    wrong = split.labels[(split.labels < 0) | (split.labels >= known.num_classes)]
    if len(wrong):
        raise UserError(
            f"The files of {name} were not used: {len(wrong):,} labels are outside its {known.num_classes} classes, "
            f"e.g. {int(wrong[0])}, in {held}."
        )


def _load_folder(path: Path, image_size: int | None, memory: float) -> Data:
    if not path.is_dir() and not path.name.endswith(ARCHIVES):
        raise UserError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)}) of images by class.")
    held = read_folder(path, image_size, memory)
    name = path.resolve().name
    for suffix in ARCHIVES:
        name = name.removesuffix(suffix)
    channels, *size = held.train.shape
    net = "mnist-mlp" if channels == 1 else "cifar-conv-128" if size == [32, 32] else "resnet-20"
    augment: Augment = "none" if channels == 1 else "crop-flip"
    shown = shortened(held.classes, 5)
    note = (
        f"{len(held.train):,} training and {len(held.test):,} test images of {len(held.classes)} classes ({shown}) in "
        f"{path}"
    )
    return Data(
        name, name, held.classes, held.train, held.test, augment, net, held.validation, notes=(note, *held.notes)
    )


def _half(data: Data, half: str) -> Data:
    middle = len(data.classes) // 2
    first, end = (0, middle) if half == "-half" else (middle, len(data.classes))

    def inside(images: Images) -> Tensor:
        return (images.labels >= first) & (images.labels < end)

    def of(images: Images) -> Images:
        taken = images.take(inside(images))
        return replace(taken, labels=taken.labels - first)

    return replace(
        data,
        name=f"{data.name}{half}",
        classes=data.classes[first:end],
        train=of(data.train),
        test=of(data.test),
        validation=data.validation and of(data.validation),
        groups=_groups(data)[inside(data.train)],
    )


def _without(data: Data, missing: str) -> Data:
    folded = [name.casefold() for name in data.classes]
    if missing.casefold() not in folded:
        raise unknown(f"class of {data.title}", missing, data.classes)
    label = folded.index(missing.casefold())
    others = data.train.labels != label
    train = data.train.take(others)
    note = f"no training image is of class {data.classes[label]}; {len(train):,} training images are left"
    return replace(
        data,
        name=f"{data.name}-no-{data.classes[label]}",
        train=train,
        validation=data.validation and data.validation.take(data.validation.labels != label),
        notes=(*data.notes, note),
        groups=_groups(data)[others],
    )
