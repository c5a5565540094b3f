"""Checkpoints: written atomically, without pickle; the last two are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import kfrl
from kfrl.errors import UserError
from kfrl.runs.atomic import replacing
from kfrl.runs.provenance import commit

KEPT = 2
SHOWN = 3
"""Most differences between two nets that an error names."""


@dataclass(frozen=True)
class Checkpoint:
    """A run's state: named tensors and counters."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    version: str = "an earlier version of kfrl"
    """The version of kfrl that wrote it."""

    @contextmanager
    def understood(self) -> Iterator[None]:
        """A context that turns the error of a missing or misshapen entry into a UserError.

        Raises:
            UserError: the message names the version that wrote the checkpoint, and this version.
        """
        try:
            yield
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{self.path} was written by {self.version}, and this version ({this_version()}) cannot resume from "
                f"it: {what}. Resume with the version that wrote it."
            ) from None

    def prefixed(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, by the rest of their names."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def load_net(self, net: nn.Module) -> None:
        """Load the tensors `net.*` into `net`.

        Raises:
            UserError: they belong to another net; the message says what differs.
        """
        saved, own = self.prefixed("net."), net.state_dict()
        shapes = {name: (saved.get(name), own.get(name)) for name in sorted(saved.keys() | own.keys())}
        differing = [
            f"{name}: {_shape(theirs)} instead of {_shape(ours)}"
            for name, (theirs, ours) in shapes.items()
            if theirs is None or ours is None or theirs.shape != ours.shape
        ]
        if differing:
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            raise UserError(
                f"{self.path} holds another net than this version of kfrl builds from the run's config.yaml and "
                f"teachers ({'; '.join(differing[:SHOWN])}{more}). Resume with the version that wrote it, "
                f"{self.version}, or restore the config and the teachers."
            )
        net.load_state_dict(saved)


def save_checkpoint(directory: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write `step-<step>.safetensors` into `directory` and delete all but the last two.

    Raises:
        UserError: it could not be written (a full disk); earlier checkpoints are unchanged.
    """
    path = directory / f"step-{step:012d}.safetensors"
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with replacing(path) as temporary:
        try:
            save_file(copies, temporary, {"state": json.dumps(dict(state)), "version": this_version()})
        except SafetensorError as error:
            raise OSError(str(error)) from error
    for old in _paths(directory)[:-KEPT]:
        old.unlink()
    return path


def latest_checkpoint(directory: Path) -> Checkpoint:
    """Read the newest undamaged checkpoint.

    Raises:
        UserError: there is none.
    """
    damaged = []
    for path in reversed(_paths(directory)):
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                metadata = file.metadata() or {}
                version = metadata.get("version", Checkpoint.version)
                return Checkpoint(tensors, json.loads(metadata["state"]), path, version)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            damaged.append(f"{path.name} ({error})")
    found = f"; damaged: {', '.join(damaged)}" if damaged else ""
    raise UserError(f"There is no checkpoint to resume from in {directory}{found}.")


def checkpoint_to_resume(directory: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint; None if none was ever written, so that the run starts from the beginning.

    Raises:
        UserError: all checkpoints are damaged.
    """
    return latest_checkpoint(directory) if _paths(directory) else None


def this_version() -> str:
    """The version of kfrl that is running, with its commit in a checkout."""
    found = commit()
    return f"kfrl {kfrl.__version__}" + ("" if found == kfrl.__version__ else f" (commit {found[:12]})")


def version_of(directory: Path) -> str:
    """The version of kfrl that wrote the newest undamaged checkpoint."""
    for path in reversed(_paths(directory)):
        with suppress(SafetensorError, OSError), safe_open(path, framework="pt") as file:
            version: str = (file.metadata() or {}).get("version", Checkpoint.version)
            return version
    return Checkpoint.version


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def _paths(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*.safetensors"))
