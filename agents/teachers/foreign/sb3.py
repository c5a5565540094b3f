"""Stable-Baselines3 zips: tensors from `policy.pth`, settings from the JSON `data`; its pickles are not read."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agents.teachers.foreign.layers import LayerTable, Tensors, refuse_other_kinds, unrecognised
from agents.teachers.foreign.state_dicts import nature
from agents.teachers.foreign.tensors import load_torch, unwrapped
from kfrl.errors import UserError

POLICY = "policy.pth"


def _nature_cnn(net: str, ignore: tuple[str, ...], **heads: str) -> LayerTable:
    extractor = f"{net}features_extractor"
    return replace(nature(f"{extractor}.cnn.", f"{extractor}.linear.0", **heads), ignore=ignore)


_QUANTILES = "quantile_net.quantile_net.0"
KNOWN: dict[str, LayerTable] = {
    "actor-critic": _nature_cnn(
        "", ("pi_features_extractor.", "vf_features_extractor."), policy="action_net", value="value_net"
    ),
    "dqn": _nature_cnn("q_net.", ("q_net_target.",), q="q_net.q_net.0"),
    "qr-dqn": _nature_cnn("quantile_net.", ("quantile_net_target.",), q=_QUANTILES),
}


def read_zip(path: Path) -> tuple[str, LayerTable, Tensors, dict[str, Any]]:
    """Read the policy from a zip of `model.save`.

    Returns:
        The algorithm, the layer table, the tensors, and the JSON of the settings, which may be empty.

    Raises:
        UserError: the policy is not a CnnPolicy with one body, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            policy = archive.read(POLICY)
            text = archive.read("data") if "data" in archive.namelist() else b"{}"
        data = json.loads(text)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is a truncated or damaged Stable-Baselines3 zip ({error}). Copy it again.") from None
    source = f"{path} (Stable-Baselines3)"
    tensors: Tensors = unwrapped(load_torch(io.BytesIO(policy), f"{POLICY} in {path}")[0])
    refuse_other_kinds(tensors, source)
    data = data if isinstance(data, dict) else {}
    for method, table in KNOWN.items():
        if table.fits(tensors):
            _check_extractor(tensors, data, source)
            if method == "qr-dqn":
                tensors = _mean_of_quantiles(tensors, data, source)
            elif method == "actor-critic":
                method = "ppo" if "clip_range" in data else "a2c"
            return f"sb3 {method}", _scaled(table, data), tensors, data
    copies = tuple(prefix for table in KNOWN.values() for prefix in table.ignore)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(copies)}
    raise unrecognised(tensors, source, f"{POLICY}  # unzip {path.name} {POLICY}")


def _settings(data: dict[str, Any]) -> dict[str, Any]:
    settings = data.get("policy_kwargs")
    return settings if isinstance(settings, dict) else {}


def _scaled(table: LayerTable, data: dict[str, Any]) -> LayerTable:
    raw = str(_settings(data).get("normalize_images", True)) == "False"
    return replace(table, scale="0..255") if raw else table


def _check_extractor(tensors: Tensors, data: dict[str, Any], source: str) -> None:
    extractor = str(_settings(data).get("features_extractor_class", "NatureCNN"))
    if "NatureCNN" not in extractor:
        raise UserError(
            f"{source} has a custom features extractor, {extractor}, whose activations are not in the file. "
            "Valid: NatureCNN, the default of CnnPolicy."
        )
    own = "vf_features_extractor."
    bodies = [(tensors[name.removeprefix("vf_")], tensors[name]) for name in tensors if name.startswith(own)]
    if not all(torch.equal(policy, value) for policy, value in bodies):
        raise UserError(
            f"{source} has a second body for its value (share_features_extractor=False). Valid: one body for policy "
            "and value."
        )


def _mean_of_quantiles(tensors: Tensors, data: dict[str, Any], source: str) -> Tensors:
    """Replace the quantile head by one Q head; the mean of linear layers is a linear layer."""
    space = data.get("action_space")
    count = str(space.get("n")) if isinstance(space, dict) else ""
    rows = len(tensors[f"{_QUANTILES}.weight"])
    if not count.isdecimal() or int(count) < 1 or rows % int(count):
        raise UserError(
            f"{source} has {rows} quantiles, but its `data` does not give a matching number of actions (action_space.n "
            f"is {count!r})."
        )
    means = {
        name: tensors[name].reshape(-1, int(count), *tensors[name].shape[1:]).mean(0)
        for name in (f"{_QUANTILES}.weight", f"{_QUANTILES}.bias")
    }
    return {**tensors, **means}
