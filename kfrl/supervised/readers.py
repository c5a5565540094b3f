"""Readers of the official formats. Each gives whole, checked images or says which file is damaged; none unpickles."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from kfrl.errors import UserError
from kfrl.supervised.batches import Images, split_off

Bytes = NDArray[np.uint8]
Content = tuple[Images, Images, tuple[str, ...]]
"""Images for training and for the test, and the classes' names in the order of the labels."""

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
TEST_SHARE = 0.2
"""Of a folder that has no test images of its own."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what goes wrong in reading a file into an error that names it."""
    from scipy.io.matlab import MatReadError

    damage = (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error)
    try:
        yield
    except (*damage, zipfile.BadZipFile, tarfile.TarError, MatReadError) as error:
        # tarfile goes on to list every compression that it has tried.
        reason = str(error).partition("\n")[0].rstrip(" .:")
        raise UserError(
            f"{path} is damaged or only half downloaded, and was not used: {reason}. Copy it here once more; a file of "
            "a data set that kfrl knows is downloaded again when it is deleted."
        ) from None


def as_images(pixels: NDArray[Any], labels: NDArray[Any]) -> Images:
    """Tensors of the pixels (N, C, H, W) and the labels (N,).

    Raises:
        ValueError: they do not belong together.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or labels.shape != pixels.shape[:1]:
        raise ValueError(f"{pixels.dtype} images of shape {pixels.shape} with labels of shape {labels.shape}")
    return Images(torch.tensor(pixels), torch.tensor(labels.astype(np.int64)))


# --- IDX: MNIST and its relatives ---------------------------------------------------------------------------


class Readable(Protocol):
    """A binary file, gzipped or not."""

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes, or all that are left."""


def read_idx(file: Readable) -> Bytes:
    """An array of bytes in IDX format (http://yann.lecun.com/exdb/mnist).

    Raises:
        ValueError: not IDX of unsigned bytes, or shorter or longer than its header says.
    """
    header = file.read(4)
    if len(header) < 4 or header[:3] != b"\0\0\x08":
        raise ValueError("no IDX file of unsigned bytes")
    shape = np.frombuffer(file.read(4 * header[3]), dtype=">u4").astype(int)
    content = file.read()
    if len(shape) != header[3] or len(content) != shape.prod():
        raise ValueError(f"its header says {' x '.join(map(str, shape))} bytes, it holds {len(content):,}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read_idx_pair(images: Path, labels: Path) -> Images:
    """One split from two gzipped IDX files: gray images (N, H, W) and labels (N,)."""
    arrays = []
    for path in (images, labels):
        with naming(path), gzip.open(path) as file:
            arrays.append(read_idx(file))
    with naming(labels):
        return as_images(arrays[0][:, None], arrays[1])


def read_emnist(path: Path, part: str, first_label: int) -> tuple[Images, Images]:
    """Training and test images of `letters` or `digits` from NIST's gzip.zip, where they lie transposed."""
    splits = []
    with naming(path), zipfile.ZipFile(path) as archive:
        for split in ("train", "test"):
            arrays = []
            for kind in ("images-idx3", "labels-idx1"):
                with archive.open(f"gzip/emnist-{part}-{split}-{kind}-ubyte.gz") as packed:
                    arrays.append(read_idx(gzip.open(packed)))
            upright = arrays[0].transpose(0, 2, 1)[:, None]
            splits.append(as_images(upright, arrays[1].astype(np.int64) - first_label))
    return splits[0], splits[1]


# --- CIFAR, SVHN, STL-10 ------------------------------------------------------------------------------------


def _members(path: Path, names: Sequence[str]) -> dict[str, Bytes]:
    """The named members of a tar archive, which is read no further than the last of them."""
    found: dict[str, Bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name in names and (file := archive.extractfile(member)) is not None:
                found[member.name] = np.frombuffer(file.read(), dtype=np.uint8)
            if len(found) == len(names):
                return found
    raise ValueError(f"no {', '.join(sorted(set(names) - set(found)))} in it")


def read_cifar(path: Path, train: Sequence[str], test: str, labels: int) -> tuple[Images, Images]:
    """CIFAR's binary version: records of `labels` label bytes, the last of which counts, and 3 x 32 x 32 pixels."""
    with naming(path):
        members = _members(path, [*train, test])
        splits = []
        for names in (train, (test,)):
            records = np.concatenate([members[name] for name in names]).reshape(-1, labels + 3072)
            splits.append(as_images(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1]))
    return splits[0], splits[1]


def read_svhn(path: Path) -> Images:
    """Format 2 of SVHN: X (32, 32, 3, N), y (N, 1) in 1 to 10, where 10 is the digit 0."""
    from scipy.io import loadmat

    with naming(path):
        held = loadmat(path, variable_names=("X", "y"))
        labels = held["y"].reshape(-1).astype(np.int64)
        return as_images(held["X"].transpose(3, 2, 0, 1), np.where(labels == 10, 0, labels))


def read_stl10(path: Path) -> tuple[Images, Images]:
    """The labelled images of STL-10: (N, 3, 96, 96), column by column, and labels from 1 on."""
    names = [f"stl10_binary/{split}_{kind}.bin" for split in ("train", "test") for kind in "Xy"]
    with naming(path):
        held = _members(path, names)
        splits = []
        for pixels, labels in (names[:2], names[2:]):
            upright = held[pixels].reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
            splits.append(as_images(upright, held[labels].astype(np.int64) - 1))
    return splits[0], splits[1]


# --- folders of images --------------------------------------------------------------------------------------


def read_folder(path: Path, image_size: int | None = None) -> Content:
    """Images by class: a folder, or a .tar.gz or .zip of one.

    Layouts: `train/CLASS/...` and `test/CLASS/...` (or `val`); Tiny-ImageNet's, whose `val_annotations.txt` names the
    classes; or `CLASS/...` alone, of which a fifth of each class becomes the test.

    Args:
        path: The folder or archive.
        image_size: Resize to this height and width; without it all images have to be of one size.

    Raises:
        UserError: a file that is damaged or no image, other sizes, or no images by class.
    """
    with naming(path):
        named = {name: content for name, content in _entries(path)}
    annotations = {
        line.split("\t")[0]: line.split("\t")[1]
        for name, content in named.items()
        if name.name == "val_annotations.txt"
        for line in content.decode(errors="replace").splitlines()
        if "\t" in line
    }
    found: dict[str, list[tuple[str, Bytes]]] = {"train": [], "test": []}
    for name in sorted(named):
        if name.suffix.lower() in PICTURES:
            split, label = _place(name, annotations)
            found[split].append((label, _decode(named.pop(name), f"{path}: {name}", image_size)))
    if not found["train"]:
        raise UserError(f"{path} holds no images by class: expected train/CLASS/NAME.jpg, or CLASS/NAME.jpg.")
    return _assemble(path, found)


def _entries(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Every file of a folder or archive with its path below the root, a single folder on top left out."""
    if path.is_dir():
        held = ((PurePosixPath(*file.relative_to(path).parts), file.read_bytes) for file in path.rglob("*.*"))
        yield from ((name, read()) for name, read in held if not name.name.startswith("."))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield PurePosixPath(info.filename), archive.read(info)
    else:
        with tarfile.open(path) as packed:
            for member in packed:
                file = packed.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield PurePosixPath(member.name), file.read()


def _place(name: PurePosixPath, annotations: dict[str, str]) -> tuple[str, str]:
    """The split and the class of an image."""
    folders = name.parts[:-1]
    for depth, folder in enumerate(folders[:2]):
        if folder in ("train", "test", "val"):
            inside = folders[depth + 1 :]
            label = annotations.get(name.name) if inside[:1] == ("images",) else (inside[0] if inside else None)
            return ("train" if folder == "train" else "test"), label or ""
    return "train", folders[-1] if folders else ""


def _decode(content: bytes, source: str, size: int | None) -> Bytes:
    """(H, W) gray or (H, W, 3) BGR."""
    image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_ANYCOLOR) if content else None
    if image is None:
        raise UserError(f"{source} is damaged, or no image that can be read.")
    if size is not None and image.shape[:2] != (size, size):
        shrinks = max(image.shape[:2]) > size
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image.astype(np.uint8, copy=False)


def _assemble(path: Path, found: dict[str, list[tuple[str, Bytes]]]) -> Content:
    classes = tuple(sorted({label for label, _ in found["train"]}))
    pictures = [picture for split in found.values() for _, picture in split]
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise UserError(
            f"The images of {path} are of {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}: give --image-size N to "
            "resize them all to N x N."
        )
    strange = sorted({label for label, _ in found["test"]} - set(classes))
    if strange or "" in classes:
        where = f"test images of {strange[0]!r}, a class without training images" if strange else "images in no class"
        raise UserError(f"{path} holds {where}. Its classes: {', '.join(name for name in classes[:10] if name)}.")
    colour = any(picture.ndim == 3 for picture in pictures)
    splits = [_stack(held, classes, colour) for held in found.values() if held]
    if len(splits) == 1:
        train, test = split_off(splits[0].labels, TEST_SHARE, "test")
        if not len(test):
            raise UserError(
                f"{path} has no test images of its own, so a fifth of each class would become the test, and no class "
                f"has 3 images. Add images, or put those for the test into test/CLASS and the others into train/CLASS."
            )
        return splits[0].take(train), splits[0].take(test), classes
    return splits[0], splits[1], classes


def _stack(held: list[tuple[str, Bytes]], classes: Sequence[str], colour: bool) -> Images:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[label] for label, _ in held])
    pixels = np.stack([_channels(picture, colour) for _, picture in held])
    return as_images(pixels, labels)


def _channels(picture: Bytes, colour: bool) -> Bytes:
    """(H, W) or (H, W, 3) BGR -> (1, H, W), or (3, H, W) RGB."""
    if not colour:
        return picture[None]
    if picture.ndim == 2:
        picture = picture[:, :, None].repeat(3, 2)
    rgb: Bytes = picture[:, :, ::-1].transpose(2, 0, 1)
    return rgb
