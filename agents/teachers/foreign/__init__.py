"""Agents of other programs, recognised by the content of their files, without unpickling."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from agents.teachers.foreign import sb3
from agents.teachers.foreign.layers import LayerTable, Tensors, build_agent, loading, unrecognised
from agents.teachers.foreign.state_dicts import canonical, recognise
from agents.teachers.foreign.tensors import load_safetensors, load_torch
from envs.preprocessing import PRESETS, Preprocessing, get_preprocessing
from kfrl.config import load_config
from kfrl.errors import UserError, missing_file, unknown
from kfrl.nets.atari.net import AtariNet
from kfrl.runs.cards import refuse_no_weights

FORMATS = ("sb3", "cleanrl", "ikostrikov", "plain")
TABLE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class ForeignAgent:
    """An agent from a file of another program; facts that the file does not give are empty."""

    net: AtariNet
    """The net, called like any other net, because scale and frame order are folded into it."""
    method: str
    preprocessing: Preprocessing
    game: str = ""
    """The game, as the file spells it."""
    actions: tuple[str, ...] = ()
    """Names of the actions, in the order of the logits."""
    steps: int = 0
    seed: int | None = None
    score: float | None = None
    """The score that its authors report."""
    notes: str = ""
    weights: Path | None = None
    """The file of weights, if a layer table describes it."""
    loaded: tuple[str, ...] = ()
    """How each tensor of the file was used, a line each."""


@dataclass(frozen=True)
class AgentTable:
    """A YAML file that describes the agent in a file of weights that kfrl does not recognise."""

    weights: Path
    """The file of the state dict (torch.save or safetensors), relative to the YAML file."""
    layers: LayerTable
    game: str = ""
    actions: tuple[str, ...] = ()
    """Names of the actions in the order of the logits; by default the game's minimal set, or all 18 for 18 logits."""
    preprocessing: str | Preprocessing = "ale"
    """A preset's name, or its fields."""
    method: str = "imported"
    steps: int = 0
    score: float | None = None
    """The score that its authors report."""
    notes: str = ""


def read_foreign(path: Path, kind: str | None = None) -> ForeignAgent:
    """Read an agent of another program.

    Args:
        path: A Stable-Baselines3 zip, a state dict (torch.save or safetensors), or a YAML file with a layer table.
        kind: The only accepted format, one of FORMATS.

    Raises:
        UserError: the file is missing or damaged, contains code (which was not run), or its net cannot be a teacher.
    """
    if kind is not None and kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if not path.is_file():
        raise missing_file(path)
    if path.suffix in TABLE_SUFFIXES:
        return _read_table(path)
    refuse_no_weights(path)
    members = _members(path)
    if any(re.search(r"(^|/)code/.*\.py$", name) for name in members):
        raise UserError(
            f"{path} is TorchScript, which is code, so it was not opened. Save only its weights: "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), ...)."
        )
    if sb3.POLICY in members:
        if kind not in (None, "sb3"):
            raise UserError(f"{path} is a Stable-Baselines3 zip, expected format {kind}.")
        return _read_sb3(path)
    if members and not any(name.endswith("data.pkl") for name in members):
        raise UserError(
            f"{path} is a zip archive without a policy: it contains {', '.join(members[:6])}. Expected the "
            f"{sb3.POLICY} of Stable-Baselines3, or a file of torch.save."
        )
    read, entry = _read_tensors(path)
    tensors = canonical(read)
    found = recognise(tensors, kind)
    if kind == "sb3" or (found is None and kind is not None):
        raise UserError(f"{path} is not of format {kind}. Leave the format out to have it recognised.")
    if found is None:
        raise unrecognised(tensors, str(path), path.name)
    method, table, preprocessing = found
    notes = f"The state dict is the file's entry {entry!r}." if entry else ""
    net = build_agent(table, tensors, str(path))
    return ForeignAgent(net, method, preprocessing, notes=notes, loaded=loading(table, tensors))


def _members(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged: {error}.") from None


def _read_tensors(path: Path) -> tuple[Tensors, str]:
    """The state dict, and the name of its entry in the file."""
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file starts with the header's length in eight bytes, then the header.
    return (load_safetensors(path), "") if start[8:] == b"{" else load_torch(path, str(path))


def _read_sb3(path: Path) -> ForeignAgent:
    method, table, tensors, data = sb3.read_zip(path)
    steps, seed = data.get("num_timesteps"), data.get("seed")
    return ForeignAgent(
        build_agent(table, tensors, f"{path} (Stable-Baselines3)"),
        method,
        PRESETS["baselines"],
        steps=steps if isinstance(steps, int) else 0,
        seed=seed if isinstance(seed, int) else None,
        loaded=loading(table, tensors),
    )


def _read_table(path: Path) -> ForeignAgent:
    table = load_config(path, AgentTable)
    weights = path.parent / table.weights
    if not weights.is_file():
        raise missing_file(weights)
    own = table.preprocessing
    tensors = _read_tensors(weights)[0]
    net = build_agent(table.layers, tensors, str(path))
    if table.actions and len(table.actions) != net.policy.out_features:
        raise UserError(f"{path} names {len(table.actions)} actions, but the net has {net.policy.out_features}.")
    return ForeignAgent(
        net,
        table.method,
        get_preprocessing(own) if isinstance(own, str) else own,
        table.game,
        table.actions,
        table.steps,
        score=table.score,
        notes=table.notes,
        weights=weights,
        loaded=loading(table.layers, tensors),
    )
