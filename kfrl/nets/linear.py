"""Large fully connected layers on a CPU with oneDNN, which needs half of MKL's time on processors of other makers.

    y = x W^T + b;  dL/dx = g W,  dL/dW = g^T x,  dL/db = the sum of g over the batch

MKL has no AVX-512 kernels for AMD's processors, and `torch.nn.functional.linear` always uses MKL for 32-bit floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 2**21
"""Up to this number of multiplications oneDNN saves no time."""


class Linear(nn.Linear):
    """`torch.nn.Linear` computed by `linear`, with the same parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same as `torch.nn.functional.linear` up to rounding: (B, n), (m, n), (m,) -> (B, m)."""
    if not _pays(x, weight):
        return F.linear(x, weight, bias)
    return _with_graph(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)


def _pays(x: Tensor, weight: Tensor) -> bool:
    large = x.dim() == 2 and len(x) * weight.numel() > SMALL
    return large and _AVAILABLE and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, weight))


_AVAILABLE = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """OneDNN's kernel, which torch.compile uses too; it accepts tensors of any strides."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class _OneDNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            linear(grad, weight.t()) if for_x else None,
            linear(grad.t(), x.t()) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


_with_graph: Callable[[Tensor, Tensor, Tensor | None], Tensor] = _OneDNN.apply
