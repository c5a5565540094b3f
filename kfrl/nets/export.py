"""Nets as files that other programs run: ONNX, TorchScript, or named tensors. What they need to know goes inside."""

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
"""Where a file keeps its description."""
TOLERANCE = 1e-3
"""How far an exported net's numbers may be from the net's own, absolutely and relatively."""


def export(
    net: nn.Module, example: Tensor, outputs: tuple[str, ...], about: Mapping[str, Any], to: Format, path: Path
) -> float:
    """Write a net, its input called `input`, whose first dimension is a batch of any size.

    Args:
        net: In evaluation mode.
        example: A batch (B, ...) as the net takes it, B of at least 2.
        outputs: What to call what it returns, in its order.
        about: What the file says of itself, as JSON under `KEY`: ONNX metadata, a TorchScript extra file, or the header
            of safetensors.
        to: The format.
        path: The file; it is either whole or not there.

    Returns:
        The largest difference between the written net's outputs and the net's own, on one and on all of the examples.

    Raises:
        UserError: a package is missing, an operator has no counterpart in the format, or the outputs differ.
    """
    plain = _plain(net)
    text = json.dumps(about)
    with replacing(path) as temporary:
        run = _WRITERS[to](plain, example, outputs, text, Path(temporary))
        return max(_difference(net, run, batch) for batch in (example[:1], example))


def _plain(net: nn.Module) -> nn.Module:
    """A copy without kernels of this machine."""
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
    """Without PyTorch's warnings that do not concern the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


Run = Callable[[Tensor], tuple[Tensor, ...]]


def _onnx(net: nn.Module, example: Tensor, outputs: tuple[str, ...], text: str, path: Path) -> Run:
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
                (example,),
                input_names=["input"],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
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
            f"ONNX does not know all of this net's operators: {_reason(error)}. --to torchscript and --to safetensors "
            "take every net."
        ) from None
    return lambda batch: tuple(map(torch.from_numpy, session.run(None, {"input": batch.numpy()})))


def _reason(error: BaseException) -> str:
    """The innermost cause's last line that says something."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _torchscript(net: nn.Module, example: Tensor, outputs: tuple[str, ...], text: str, path: Path) -> Run:
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(net, example, check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={KEY: text})
        loaded = torch.jit.load(str(path))
    return _as_tuple(loaded)


def _safetensors(net: nn.Module, example: Tensor, outputs: tuple[str, ...], text: str, path: Path) -> Run:
    tensors = {name: tensor.contiguous().clone() for name, tensor in net.state_dict().items()}
    save_file(tensors, path, {"format": "pt", KEY: text})
    return _as_tuple(net)


def _as_tuple(net: Callable[[Tensor], Any]) -> Run:
    def run(batch: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = net(batch)
        return found if isinstance(found, tuple) else (found,)

    return run


_WRITERS: dict[Format, Callable[[nn.Module, Tensor, tuple[str, ...], str, Path], Run]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "safetensors": _safetensors,
}


def _difference(net: nn.Module, run: Run, batch: Tensor) -> float:
    worst = 0.0
    for own, written in zip(_as_tuple(net)(batch), run(batch), strict=True):
        if own.shape != written.shape or not torch.allclose(own, written, rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(
                "The exported net does not say what the net says on the same input, so no file was written. Please "
                "report the net and the versions of `kfrl doctor`; --to safetensors writes its tensors as they are."
            )
        worst = max(worst, float((own - written).abs().max()))
    return worst
