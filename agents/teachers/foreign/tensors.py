"""Tensors from files of other programs, without unpickling."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kfrl.errors import UserError

DEPTH = 2
"""Depth of the search for a state dict in nested dicts."""


def load_torch(file: Path | IO[bytes], source: str) -> tuple[dict[str, Tensor], str]:
    """Read a state dict from a file of `torch.save`; `weights_only` refuses anything that could run code.

    Returns:
        The tensors, and the name of their entry in the file; empty if the file is the state dict itself.

    Raises:
        UserError: the file is damaged, has no state dict or several, or contains code, which was not run.
    """
    try:
        with warnings.catch_warnings():
            # The file is read, or refused below with a reason.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Not torch's message, which advises loading the file with weights_only=False.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f": it asks for {asked[1]}, which is code" if asked else " of tensors, or is truncated"
        raise UserError(
            f"{source} is not a plain state dict{reason}. It was not unpickled and no code in it ran. Expected a file "
            "of torch.save(net.state_dict(), ...)."
        ) from None
    if _is_state_dict(tensors):
        return tensors, ""
    found = dict(_state_dicts(tensors, "", DEPTH))
    if len(found) > 1:
        raise UserError(
            f"{source} contains {len(found)} state dicts: {', '.join(found)}. Save only that of the agent: "
            f"torch.save(torch.load({str(source)!r}, weights_only=True)[...], ...)."
        )
    for entry, inside in found.items():
        return inside, entry
    return _checked(tensors, source), ""


def _is_state_dict(loaded: object) -> bool:
    return (
        isinstance(loaded, dict)
        and bool(loaded)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items())
    )


def _state_dicts(loaded: object, path: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All state dicts in nested dicts, by their path of keys."""
    for name, inside in loaded.items() if isinstance(loaded, dict) else ():
        entry = f"{path}.{name}" if path else str(name)
        if _is_state_dict(inside):
            yield entry, inside
        elif depth > 1:
            yield from _state_dicts(inside, entry, depth - 1)


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the prefixes of torch.compile and DataParallel in their names."""
    compiled = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): tensor for name, tensor in tensors.items()}
    # Not ACKTR's `linear.module.weight`, where `module` holds the weight itself.
    return {re.sub(r"(^|\.)module\.(?=.+\.)", r"\1", name): tensor for name, tensor in compiled.items()}


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: the file is damaged.
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
