"""The native agent file: safetensors with a JSON card in its header. Nothing is ever unpickled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kfrl.atomic import replacing
from kfrl.config import validated
from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.teachers.preprocessing import ALE, Preprocessing

FORMAT = "kfrl-agent-1"


@dataclass(frozen=True)
class Card:
    """What a file says of the agent in it."""

    game: str
    """The ROM's name."""
    actions: tuple[str, ...]
    """The actions by name, in the order of the logits."""
    arch: dict[str, Any]
    """What `build_net` needs."""
    method: str = "unknown"
    steps: int = 0
    """Agent steps that it was trained for."""
    seed: int | None = None
    teachers: tuple[str, ...] = ()
    protocol: dict[str, Any] = field(default_factory=dict)
    """The rules of its training."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The result of its last 30-episode evaluation: all scores, mean, interval."""
    preprocessing: Preprocessing = ALE
    """The pictures that it was trained on, and the buttons that its wrappers press for it."""
    commit: str = "unknown"
    notes: str = ""

    @property
    def mean_score(self) -> float | None:
        """Mean raw score of the evaluation, if there was one."""
        return self.evaluation.get("mean")


@dataclass(frozen=True)
class Teacher:
    """A loaded agent."""

    name: str
    """What a run calls it: a column of tables, a key of metrics and links."""
    net: nn.Module
    card: Card
    path: Path


def save_agent(path: Path, net: nn.Module, card: Card) -> None:
    """Write `net` and its `card`; the file is either whole or not there."""
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
    }
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"format": FORMAT, "card": json.dumps(asdict(card))})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_card(path: Path) -> Card:
    """Read only the header of an agent file.

    Raises:
        UserError: not a whole native agent file.
    """
    return _read(path, with_tensors=False)[0]


def load_agent(path: Path, name: str | None = None) -> Teacher:
    """Read an agent file into a net on the CPU, in evaluation mode.

    Args:
        path: The file.
        name: What to call it; by default the file's stem.

    Raises:
        UserError: missing, truncated, of a foreign format, or tensors that do not fit the architecture it names.
    """
    card, tensors = _read(path, with_tensors=True)
    net = build_net(card.arch, len(card.actions))
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors do not fit the architecture that its card names. {error}") from None
    return Teacher(name or path.stem, net.eval().requires_grad_(False), card, path)


def is_native(path: Path) -> bool:
    """Whether a file says of itself that it is one of ours. What cannot be read says nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def _read(path: Path, with_tensors: bool) -> tuple[Card, dict[str, Tensor]]:
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError(
                    f"{path} is a safetensors file without kfrl's card (format {header.get('format')!r}, "
                    f"expected {FORMAT!r})."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or damaged ({error}). Copy it again, or train it anew.") from None
    return _parse_card(path, header.get("card", "")), tensors


def _parse_card(path: Path, text: str) -> Card:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: its card is not JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: its card is a JSON {type(fields).__name__}, expected an object.")
    return validated(fields, Card, source=f"{path}: its card")


def _refuse_foreign(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    with path.open("rb") as file:
        start = file.read(9)
    # Before the brace stands the header's length, whose bytes may look like the start of anything.
    if start[8:9] == b"{":
        return
    if start[:2] == b"PK":
        kind = "a zip archive (a torch.save or Stable-Baselines3 file?)"
    elif start[:1] == b"\x80":
        kind = "a Python pickle, which can run code"
    else:
        kind = "no safetensors file, or a truncated one"
    raise UserError(
        f"{path} is {kind}: it was not opened. Expected kfrl's own agent format (.safetensors, as a run or "
        "`kfrl teachers import` writes it)."
    )
