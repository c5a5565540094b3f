"""Export of nets for other programs, as ONNX, TorchScript or named tensors, with a description in the file."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.nets.linear import Linear
from kfrl.runs.atomic import replacing

Format = Literal["onnx", "torchscript", "safetensors"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
KEY = "kfrl"
"""The key of the description in the file."""
TOLERANCE = 1e-3
"""Absolute and relative tolerance between the outputs of the exported net and of the net."""


def export(
    net: nn.Module,
    example: Mapping[str, Tensor],
    outputs: tuple[str, ...],
    about: Mapping[str, Any],
    to: Format,
    path: Path,
) -> float:
    """Write a net atomically. Its inputs accept any batch size.

    Args:
        net: The net, in evaluation mode.
        example: Name of each input -> a batch (B, ...) of it, in the order of the net's arguments; B at least 2.
        outputs: Names of the outputs, in order.
        about: The description, written as JSON under `KEY`: as ONNX metadata, a TorchScript extra file, or in the
            header of safetensors.
        to: The format.
        path: The file.

    Returns:
        The largest difference between the outputs of the written net and of the net, on one example and on all.

    Raises:
        UserError: a package is missing, the format lacks an operator, or the outputs differ.
    """
    plain = _plain(net)
    text = json.dumps(about)
    with replacing(path) as temporary:
        run = _WRITERS[to](plain, example, outputs, text, Path(temporary))
        first = {name: batch[:1] for name, batch in example.items()}
        return max(_difference(net, run, batch) for batch in (first, example))


def _plain(net: nn.Module) -> nn.Module:
    """A copy without kernels that depend on this machine."""
    made = copy.deepcopy(net).eval().requires_grad_(False)
    for parent in list(made.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear):
                usual = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                usual.load_state_dict(layer.state_dict())
                setattr(parent, name, usual.eval().requires_grad_(False))
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without PyTorch's warnings, which do not concern the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


Inputs = Mapping[str, Tensor]
Run = Callable[[Inputs], tuple[Tensor, ...]]


def _onnx(net: nn.Module, example: Inputs, outputs: tuple[str, ...], text: str, path: Path) -> Run:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to onnx needs {', '.join(missing)}: pip install {' '.join(missing)} (or kfrl's extra: "
            "pip install -e '.[export]'). --to torchscript and --to safetensors need nothing more."
        )
    import onnx
    import onnxruntime

    try:
        with _quiet():
            program = torch.onnx.export(
                net,
                tuple(example.values()),
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch")},) * len(example),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        onnx.helper.set_model_props(model, {KEY: text})
        path.write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(
            f"ONNX does not support all operators of this net: {_reason(error)}. --to torchscript and --to safetensors "
            "support every net."
        ) from None

    def run(batch: Inputs) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {name: part.numpy() for name, part in batch.items()})))

    return run


def _reason(error: BaseException) -> str:
    """The type of the innermost cause, and the first non-empty line of its message."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _torchscript(net: nn.Module, example: Inputs, outputs: tuple[str, ...], text: str, path: Path) -> Run:
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(net, tuple(example.values()), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={KEY: text})
        loaded = torch.jit.load(str(path))
    return _as_tuple(loaded)


def _safetensors(net: nn.Module, example: Inputs, outputs: tuple[str, ...], text: str, path: Path) -> Run:
    tensors = {name: tensor.contiguous().clone() for name, tensor in net.state_dict().items()}
    save_file(tensors, path, {"format": "pt", KEY: text})
    return _as_tuple(net)


def _as_tuple(net: Callable[..., Any]) -> Run:
    def run(batch: Inputs) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = net(*batch.values())
        return found if isinstance(found, tuple) else (found,)

    return run


_WRITERS: dict[Format, Callable[[nn.Module, Inputs, tuple[str, ...], str, Path], Run]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "safetensors": _safetensors,
}


def _difference(net: nn.Module, run: Run, batch: Inputs) -> float:
    worst = 0.0
    for own, written in zip(_as_tuple(net)(batch), run(batch), strict=True):
        if own.shape != written.shape or not torch.allclose(own, written, rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(
                "The outputs of the exported net and of the net differ on the same input, so no file was written. "
                "Report the net and the versions of `kfrl doctor`; --to safetensors writes its tensors unchanged."
            )
        worst = max(worst, float((own - written).abs().max()))
    return worst
