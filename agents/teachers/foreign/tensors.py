"""Tensors out of files of other programs, without unpickling anything."""

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
"""A state dict that stands in another dict is looked for so deep."""


def load_torch(file: Path | IO[bytes], source: str) -> tuple[dict[str, Tensor], str]:
    """Read a state dict as `torch.save` wrote it; `weights_only` refuses whatever could run code.

    Returns:
        The tensors, and the entry of the file that they are: empty where the file is the state dict itself.

    Raises:
        UserError: damaged, with no state dict in it or several, or with code in it, which did not run.
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
    if _is_state_dict(tensors):
        return tensors, ""
    found = dict(_state_dicts(tensors, "", DEPTH))
    if len(found) > 1:
        raise UserError(
            f"{source} holds {len(found)} state dicts: {', '.join(found)}. Which is the agent's? Save that one alone: "
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
    """Every state dict in a dict of dicts, by the names on the way to it."""
    for name, inside in loaded.items() if isinstance(loaded, dict) else ():
        entry = f"{path}.{name}" if path else str(name)
        if _is_state_dict(inside):
            yield entry, inside
        elif depth > 1:
            yield from _state_dicts(inside, entry, depth - 1)


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without what torch.compile and DataParallel put before their names."""
    compiled = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): tensor for name, tensor in tensors.items()}
    # ACKTR's `linear.module.weight` is another thing: there `module` holds the weight itself.
    return {re.sub(r"(^|\.)module\.(?=.+\.)", r"\1", name): tensor for name, tensor in compiled.items()}


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
