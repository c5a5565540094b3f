"""Files of nets: safetensors with a JSON card in the header. Nothing is ever unpickled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kfrl.config import validated
from kfrl.errors import UserError
from kfrl.runs.atomic import replacing
from kfrl.runs.provenance import sha256

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The facts about a net's training that its file holds; each domain adds its own."""

    method: str = "unknown"
    seed: int | None = None
    teachers: tuple[str, ...] = ()
    teacher_sha256: tuple[str, ...] = ()
    """Checksums of the teachers' files, in the order of `teachers`."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Its scores when it was last evaluated."""
    commit: str = "unknown"


@dataclass(frozen=True)
class SavedModel(Generic[C]):
    """A net that was read from a file, e.g. a teacher."""

    name: str
    """Its name in a run: in tables, metrics and links."""
    net: nn.Module
    card: C
    path: Path
    checksum: str = field(default="", kw_only=True)
    """For stored answers: the checksum of the file of the teacher that gave them."""

    @property
    def sha256(self) -> str:
        """The checksum of its file."""
        return self.checksum or sha256(self.path)


def write_net(path: Path, net: nn.Module, card: DataclassInstance, form: str, half: bool = False) -> None:
    """Write the tensors of `net` and its `card` atomically, as a file of format `form`.

    With `half`, floating-point tensors are stored in half precision; loading converts them to the net's precision.
    """
    tensors = {
        name: tensor.detach().to(
            "cpu",
            torch.half if half and tensor.is_floating_point() else tensor.dtype,
            copy=True,
            memory_format=torch.contiguous_format,
        )
        for name, tensor in net.state_dict().items()
    }
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"format": form, "card": json.dumps(asdict(card))})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_net(path: Path, kind: type[C], form: str, with_tensors: bool) -> tuple[C, dict[str, Tensor]]:
    """Read the card of a file of format `form`, and its tensors if asked.

    Raises:
        UserError: the file is not of that format, or is damaged.
    """
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != form:
                raise UserError(
                    f"{path} is a safetensors file without kfrl's card (format {header.get('format')!r}, "
                    f"expected {form!r})."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or damaged ({error}). Copy it again, or train the net again.") from None
    return _parse_card(path, header.get("card", ""), kind), tensors


def load_tensors(path: Path, net: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Load a file's tensors into the net that its card describes; the net becomes frozen, in evaluation mode.

    Raises:
        UserError: the tensors do not fit the net.
    """
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors do not fit the architecture on its card. {error}") from None
    return net.eval().requires_grad_(False)


def has_format(path: Path, form: str) -> bool:
    """Whether the header of a file names format `form`. False if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == form
    except (SafetensorError, OSError):
        return False


def _parse_card(path: Path, text: str, kind: type[C]) -> C:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: its card is not JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: its card is a JSON {type(fields).__name__}, expected an object.")
    return validated(fields, kind, source=f"{path}: its card")


def refuse_no_weights(path: Path) -> None:
    """Refuse a file without weights, which a failed download leaves.

    Raises:
        UserError: the message says what the file is, and how to get the weights.
    """
    with path.open("rb") as file:
        start = file.read(200).lstrip()
    if not start:
        raise UserError(f"{path} is empty. Copy or download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights. In its repository: git lfs pull")
    if start[:1] == b"<" and b"html" in start.lower():
        raise UserError(f"{path} is a web page, not the weights. Download the raw file that the page shows.")


def _refuse_foreign(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    refuse_no_weights(path)
    with path.open("rb") as file:
        start = file.read(9)
    # The first 8 bytes are the header's length; they can equal the start of another format, so test the brace first.
    if start[8:9] == b"{":
        return
    if start[:2] == b"PK":
        kind = "a zip archive (a torch.save or Stable-Baselines3 file?)"
    elif start[:1] == b"\x80":
        kind = "a Python pickle, which can run code"
    else:
        kind = "not a safetensors file, or a truncated one"
    raise UserError(
        f"{path} is {kind}: it was not opened. Expected kfrl's own agent format (.safetensors, written by a run or "
        "by `kfrl teachers import`)."
    )
