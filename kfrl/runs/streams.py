"""Safetensors files of tensors larger than memory, written and read row by row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kfrl.runs.atomic import replacing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Rows = dict[str, NDArray[Any]]
"""Name -> array on disk."""
KINDS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}
"""Name of a type in the safetensors format -> NumPy type."""


@contextmanager
def streaming(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], card: DataclassInstance, form: str
) -> Iterator[Rows]:
    """Yield arrays to fill. The file gets its name when the context ends; `kfrl.runs.cards.read_net` reads it.

    Args:
        path: The file.
        shapes: Name -> type, a key of `KINDS`, and shape.
        card: The card in the header.
        form: The format that the header names.

    Raises:
        UserError: writing failed; a full disk is found before the first array is yielded.
    """
    header: dict[str, Any] = {"__metadata__": {"format": form, "card": json.dumps(asdict(card))}}
    end = 0
    # Larger types first, so that all arrays are aligned.
    for name, (kind, shape) in sorted(shapes.items(), key=lambda item: -KINDS[item[1][0]].itemsize):
        start, end = end, end + KINDS[kind].itemsize * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary:
        with temporary.open("r+b") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            _reserve(file.fileno(), 8 + len(text) + end)
        arrays = {
            name: np.memmap(
                temporary, KINDS[kind], "r+", 8 + len(text) + header[name]["data_offsets"][0], shape=tuple(shape)
            )
            for name, (kind, shape) in shapes.items()
        }
        yield dict(arrays)
        for array in arrays.values():
            array.flush()


def _reserve(handle: int, size: int) -> None:
    """Reserve the disk space now, because a write through a memory map to a full disk kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)
