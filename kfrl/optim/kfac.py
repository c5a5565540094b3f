"""K-FAC: natural gradients by a Kronecker-factored Fisher matrix (Martens & Grosse 2015; Grosse & Martens 2016).

For a layer with inputs a (with a 1 appended if it has a bias) and pre-activations z, and with g = d log p / dz,

    F = Omega (x) Gamma,   Omega = E[sum_t a_t a_t^T],   Gamma = (1/T) E[sum_t g_t g_t^T]

over the T positions of a convolution; T = 1 in a fully connected layer. The natural gradient of a weight (out, in) is

    V = Q_G [ (Q_G^T dW Q_A) / (d_G d_A^T + damping) ] Q_A^T

with the eigenvectors Q and eigenvalues d of both: (F + damping I)^-1 applied to dW, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import UserError

Layer = nn.Linear | nn.Conv2d
TINY = 1e-6
"""Eigenvalues up to this value are numerical noise and set to 0."""
FACTORS = ("inputs", "outputs")
COLD_UPDATES = 11
"""Updates by plain momentum while the first factors are estimated, as in the published code of ACKTR."""


def factored_layers(net: nn.Module, trained: Iterable[nn.Parameter]) -> dict[str, Layer]:
    """The layers whose parameters are trained, by name.

    Raises:
        UserError: a trained parameter does not belong to an `nn.Linear` or an `nn.Conv2d` without groups.
    """
    wanted = {id(parameter) for parameter in trained}
    layers = {name: module for name, module in net.named_modules() if _factors(module)}
    found = {name: layer for name, layer in layers.items() if wanted & {id(p) for p in layer.parameters(recurse=False)}}
    held = {id(p) for layer in found.values() for p in layer.parameters(recurse=False)}
    others = [name for name, parameter in net.named_parameters() if id(parameter) in wanted - held]
    if others:
        raise UserError(
            f"--algo acktr cannot factor the Fisher matrix of {others[0]}"
            + (f" and {len(others) - 1} more parameters" if len(others) > 1 else "")
            + ": K-FAC supports the weights and biases of nn.Linear and nn.Conv2d (without groups). Use --algo a2c."
        )
    return {name: layer for name, layer in found.items() if isinstance(layer, nn.Linear | nn.Conv2d)}


def _factors(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


@dataclass(frozen=True)
class Statistics:
    """The factors of one layer over one batch."""

    inputs: Tensor
    """Omega (in, in), with the 1 of the bias last."""
    outputs: Tensor
    """Gamma (out, out)"""


def statistics(layer: Layer, inputs: Tensor, grads: Tensor) -> Statistics:
    """The factors of a layer over a batch.

    Args:
        layer: The layer.
        inputs: (B, in) or (B, C, H, W), the layer's inputs.
        grads: (B, out) or (B, out, H', W'), d log p / dz of each sample, not of the mean over the batch.
    """
    rows, g = _rows(layer, inputs), grads.flatten(2).transpose(1, 2) if grads.dim() == 4 else grads[:, None]
    if layer.bias is not None:
        rows = F.pad(rows, (0, 1), value=1.0)
    batch, positions = g.shape[:2]
    a, g = rows.flatten(0, 1), g.flatten(0, 1)
    return Statistics(a.T @ a / batch, g.T @ g / (batch * positions))


def _rows(layer: Layer, inputs: Tensor) -> Tensor:
    """The inputs that the layer multiplies at each position: (B, T, in)."""
    if isinstance(layer, nn.Linear):
        return inputs[:, None]
    padding: Any = layer.padding
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    return patches.transpose(1, 2)


def basis(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (n, n) in columns and eigenvalues (n,) of a symmetric matrix.

    They are computed with the numbers of the matrix, which for 32 bits takes less than half of the time of 64 bits, and
    again in 64 bits if that fails.

    Raises:
        RuntimeError: the decomposition failed.
    """
    if not factor.isfinite().all():
        raise RuntimeError("The factor holds numbers that are not finite.")
    symmetric = (factor + factor.T) / 2
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except RuntimeError:
        values, vectors = torch.linalg.eigh(symmetric.double())
    return vectors.to(factor.dtype), values.where(values > TINY, 0.0).to(factor.dtype)


def precondition(
    gradient: Tensor, inputs: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor], damping: float
) -> Tensor:
    """(Omega (x) Gamma + damping I)^-1 applied to a gradient (out, in); the factors are results of `basis`."""
    (q_a, d_a), (q_g, d_g) = inputs, outputs
    return q_g @ ((q_g.T @ gradient @ q_a) / (torch.outer(d_g, d_a) + damping)) @ q_a.T


def gradient_of(layer: Layer) -> Tensor:
    """A layer's gradient as a matrix (out, in), with the bias as the last column."""
    assert layer.weight.grad is not None
    weight = layer.weight.grad.flatten(1)
    if layer.bias is None:
        return weight
    assert layer.bias.grad is not None
    return torch.cat([weight, layer.bias.grad[:, None]], 1)


def write_gradient(layer: Layer, matrix: Tensor) -> None:
    """Overwrite a layer's gradient with a matrix in the form of `gradient_of`."""
    assert layer.weight.grad is not None
    if layer.bias is not None:
        assert layer.bias.grad is not None
        layer.bias.grad.copy_(matrix[:, -1])
        matrix = matrix[:, :-1]
    layer.weight.grad.copy_(matrix.reshape(layer.weight.shape))


class KroneckerFactors:
    """Running averages of the factors of layers, and their eigenvectors.

    All of them are in `state`, tensors by name, which a checkpoint can hold: `count`, and for each layer and side the
    factor, its `vectors` and its `values`.
    """

    def __init__(
        self, layers: dict[str, Layer], state: dict[str, Tensor], *, plain_mean: int = 10, decay: float = 0.99
    ) -> None:
        """Start with empty averages, or with those in `state`.

        Args:
            layers: Name -> layer.
            state: The tensors; this object updates them.
            plain_mean: Number of first batches whose factors are averaged with equal weights.
            decay: Decay of the average after these.
        """
        self.layers, self.state = layers, state
        self._plain_mean, self._decay = plain_mean, decay
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        if not state:
            state["count"] = torch.zeros((), dtype=torch.int64)

    @property
    def ready(self) -> bool:
        """Whether `natural` can be called."""
        return all(f"{name}.outputs.values" in self.state for name in self.layers)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the layers' inputs and outputs in a forward pass with gradients."""
        hooks = [layer.register_forward_hook(self._recorder(name), prepend=True) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if name in self._seen:
                raise UserError(f"--algo acktr cannot factor {name}: it runs twice in one pass. Use --algo a2c.")
            self._seen[name] = inputs[0].detach(), output

        return hook

    def bypassed(self, output: Tensor) -> list[str]:
        """Layers whose weights a scalar of a pass within `recording` depends on, but that did not run as modules."""
        others = [name for name in self.layers if name not in self._seen]
        weights = [self.layers[name].weight for name in others]
        grads: Sequence[Tensor | None] = torch.autograd.grad(output, weights, allow_unused=True) if others else ()
        return [name for name, grad in zip(others, grads, strict=True) if grad is not None]

    def observe(self, log_likelihood: Tensor) -> None:
        """Add a batch to the averages, after its forward pass within `recording`. No `.grad` changes.

        Args:
            log_likelihood: (B,) log p of outcomes drawn from the net's own output.
        """
        seen, self._seen = self._seen, {}
        names = [name for name, (_, output) in seen.items() if output.requires_grad]
        outputs = [seen[name][1] for name in names]
        grads = torch.autograd.grad(log_likelihood.sum(), outputs, allow_unused=True)
        self.state["count"] += 1
        count = int(self.state["count"])
        weight = 1.0 / count if count <= self._plain_mean else 1.0 - self._decay
        for name, grad in zip(names, grads, strict=True):
            if grad is not None:
                found = statistics(self.layers[name], seen[name][0], grad)
                self._average(f"{name}.inputs", found.inputs, weight)
                self._average(f"{name}.outputs", found.outputs, weight)

    def _average(self, name: str, found: Tensor, weight: float) -> None:
        if name in self.state:
            self.state[name].lerp_(found, weight)
        else:
            self.state[name] = found.mul_(weight)

    def decompose(self) -> list[str]:
        """Compute the eigenvectors and eigenvalues of the present factors.

        Returns: The factors whose decomposition failed; they keep the previous one.
        """
        failed = []
        for name, layer in self.layers.items():
            for side, size in zip(FACTORS, _sizes(layer), strict=True):
                factor = self.state.setdefault(f"{name}.{side}", layer.weight.new_zeros(size, size))
                try:
                    vectors, values = basis(factor)
                except RuntimeError:
                    failed.append(f"{name}.{side}")
                    continue
                self.state[f"{name}.{side}.vectors"], self.state[f"{name}.{side}.values"] = vectors, values
        return failed

    def natural(self, damping: float) -> float:
        """Replace the layers' gradients by natural gradients.

        Returns:
            g^T F^-1 g, about twice the KL divergence of a step of size 1.
        """
        total = 0.0
        for name, layer in self.layers.items():
            gradient = gradient_of(layer)
            inputs, outputs = (
                (self.state[f"{name}.{side}.vectors"], self.state[f"{name}.{side}.values"]) for side in FACTORS
            )
            found = precondition(gradient, inputs, outputs, damping)
            total += float((gradient * found).sum())
            write_gradient(layer, found)
        return total


def _sizes(layer: Layer) -> Sequence[int]:
    out, *inputs = layer.weight.shape
    return (int(torch.Size(inputs).numel()) + (layer.bias is not None), out)


def state_numbers(layer: Layer) -> int:
    """How many numbers `KroneckerFactors` keeps for a layer: of both factors, their eigenvectors and eigenvalues."""
    return sum(2 * size**2 + size for size in _sizes(layer))


def trust(quadratic: float, lr: float, radius: float) -> float:
    """The factor, at most 1, for a step lr V, so that lr^2 <V, dW> is at most `radius`.

    `quadratic` is <V, dW> = g^T F^-1 g, above 0. The KL divergence of the step is about half of lr^2 times that. (Wu et
    al. 2017 use min(lr, sqrt(2 delta / quadratic)); the published code, whose radius this is, omits the 2.)
    """
    return min(1.0, math.sqrt(radius / (lr**2 * quadratic)))
