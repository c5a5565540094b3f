"""Readers of the official formats. Each gives whole, checked images or says which file is damaged; none unpickles."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from kfrl.errors import UserError
from kfrl.supervised.batches import Images

Bytes = NDArray[np.uint8]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into an error that names the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is damaged or only half downloaded, and was not used: {error}. Delete it, and it will be "
            "downloaded again."
        ) from None


def read_idx(file: IO[bytes]) -> Bytes:
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
    """One split from two gzipped IDX files: gray images (N, H, W) and labels (N,).

    Raises:
        UserError: one is damaged, or they do not belong together.
    """
    arrays = []
    for path in (images, labels):
        with naming(path), gzip.open(path) as file:
            arrays.append(read_idx(file))  # type: ignore[arg-type]
    return as_images(arrays[0][:, None], arrays[1], images)


def as_images(pixels: Bytes, labels: NDArray[np.integer], source: Path) -> Images:
    """Tensors of the pixels (N, C, H, W) and the labels (N,).

    Raises:
        UserError: they do not belong together.
    """
    if pixels.ndim != 4 or labels.shape != pixels.shape[:1]:
        raise UserError(
            f"{source} is damaged and was not used: images of shape {pixels.shape} with labels of shape {labels.shape}."
        )
    return Images(torch.tensor(pixels), torch.tensor(labels.astype(np.int64)))
