"""Tensors out of files of other programs, without unpickling anything."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kfrl.errors import UserError


def load_torch(file: Path | IO[bytes], source: str) -> dict[str, Tensor]:
    """Read a state dict as `torch.save` wrote it; `weights_only` refuses whatever could run code.

    Raises:
        UserError: damaged, with anything but tensors in it, or with code in it, which did not run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Not torch's own words: they advise to load the file with weights_only=False.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f": it asks for {asked[1]}, which is code" if asked else " of tensors, or is truncated"
        raise UserError(
            f"{source} is no plain state dict{reason}. It was not unpickled and no code in it ran. Expected what "
            "torch.save(net.state_dict(), ...) writes."
        ) from None
    return _checked(tensors, source)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: damaged.
    """
    try:
        return _checked(load_file(path), str(path))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}). Copy it again.") from None


def _checked(tensors: object, source: str) -> dict[str, Tensor]:
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        inside = f" with {', '.join(map(repr, list(tensors)[:4]))}" if isinstance(tensors, dict) else ""
        raise UserError(f"{source} holds a {type(tensors).__name__}{inside}, expected a dict of tensors by name.")
    return tensors
