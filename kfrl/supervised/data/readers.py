"""Readers of the official formats. Each returns complete, checked images or names a damaged file; none unpickles."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kfrl.errors import UserError
from kfrl.supervised.data.batches import Images

Bytes = NDArray[np.uint8]


class Content(NamedTuple):
    """The content of a data set's files."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    """Names, in the order of the labels."""
    validation: Images | None = None
    """The data set's own validation images."""
    notes: tuple[str, ...] = ()
    """Remarks on the files, one line each."""
    groups: torch.Tensor | None = None
    """See `Data.groups`."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn exceptions while a file is read into an error that names the file."""
    from scipy.io.matlab import MatReadError

    damage = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zlib.error)
    try:
        yield
    except (*damage, zipfile.BadZipFile, tarfile.TarError, MatReadError) as error:
        # tarfile's further lines list every compression that it has tried.
        reason = str(error).partition("\n")[0].rstrip(" .:")
        raise UserError(
            f"{path} is damaged or only half downloaded, and was not used: {reason}. Copy it here once more; a file of "
            "a data set that kfrl knows is downloaded again when it is deleted."
        ) from None


def as_images(pixels: NDArray[Any], labels: NDArray[Any]) -> Images:
    """Tensors of the pixels (N, C, H, W) and the labels (N,).

    Raises:
        ValueError: their types or shapes do not fit.
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
        ValueError: not IDX of unsigned bytes, or of another length than its header says.
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
    """One split from two IDX files, gzipped or not: gray images (N, H, W) and labels (N,)."""
    arrays = []
    for path in (images, labels):
        with naming(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            arrays.append(read_idx(file))
    with naming(labels):
        return as_images(arrays[0][:, None], arrays[1])


def read_emnist(path: Path, part: str, first_label: int) -> tuple[Images, Images]:
    """Training and test images of `letters` or `digits` from NIST's gzip.zip, which has them transposed."""
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
    """The named members of a tar archive; reading ends at the last of them."""
    found: dict[str, Bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name in names and (file := archive.extractfile(member)) is not None:
                found[member.name] = np.frombuffer(file.read(), dtype=np.uint8)
            if len(found) == len(names):
                return found
    raise ValueError(f"no {', '.join(sorted(set(names) - set(found)))} in it")


def read_cifar(path: Path, train: Sequence[str], test: str, labels: int) -> tuple[Images, Images]:
    """CIFAR's binary version: records of `labels` label bytes, of which the last is used, and 3 x 32 x 32 pixels."""
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
        try:
            held = loadmat(path, variable_names=("X", "y"))
        except NotImplementedError:
            raise UserError(
                f"{path} is a MATLAB 7.3 file, which is HDF5; the official one is of MATLAB 5. Delete it, and it is "
                "downloaded again, or save it in MATLAB with -v7."
            ) from None
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
