"""Fold: ridge regression of the linked student's features onto the student's own layers, one layer after the other.

For each layer j, starting at the input: x is the input of layer j in the student whose layers before j are already
folded, and y is the feature of the linked net at j (the mixture, or the student's own output without links):

    [W, b] = argmin  sum |y - W x - b|^2 + mu |W|^2        ("asymmetric" regression, He et al. 2017, section 3.2)

The cases of a convolution are the patches of its input. If y is a linear map of x, the fold is exact up to mu; so it
is at a first convolution with the same input, kernel and stride as its teachers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.nets.hooks import features_of, layers_in_use

RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
"""mu as shares of the mean diagonal of X^T X. The fold takes the largest mu whose held-out error is close to the
smallest: of two equally good solutions, the one with smaller weights is the better start for training."""
HELD_OUT = 5
"""Every fifth batch of observations is held out of the regression, to choose mu and to measure R2."""
POSITIONS = 64
"""Approximate number of patches of each observation that are cases; the choice changes from batch to batch."""


@dataclass(frozen=True)
class FoldedLayer:
    """The result of the regression of one layer."""

    layer: str
    r2: float
    """1 - squared error / variance of the targets, all outputs together, on held-out observations; at most 1."""
    cases: int
    """Number of cases: observations, times patches of a convolution."""
    ridge: float
    """mu as a share of the mean diagonal of X^T X."""

    def __str__(self) -> str:
        """The result as a line for logs."""
        return f"{self.layer} R2 {self.r2:.3f} ({self.cases:,} cases, ridge {self.ridge:g})"


class Moments:
    """Sums of products for a regression of y (n, m) on x (n, d) with an intercept, accumulated in 64 bits."""

    def __init__(self, inputs: int, outputs: int, *, intercept: bool = True) -> None:
        """Start with sums of zero, for d inputs and m outputs; without an intercept, it is 0."""
        self.inputs, self.cases, self._one = inputs, 0, float(intercept)
        self.y = torch.zeros(outputs, dtype=torch.float64)
        self.xx = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.xy = torch.zeros(inputs + 1, outputs, dtype=torch.float64)
        self.yy = torch.zeros(outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add cases: x (n, d), y (n, m). The last input of `xx` and `xy` is the constant 1."""
        x, y = F.pad(x.double(), (0, 1), value=self._one), y.double()
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)
        self.y += y.sum(0)
        self.yy += y.square().sum(0)
        self.cases += len(x)

    def solve(self, ridge: float) -> Tensor:
        """The solution (d + 1, m): weights, and in the last row the intercept, which has no ridge."""
        damped = self.xx.clone()
        damped.diagonal()[:-1] += ridge * self.xx.diagonal()[:-1].mean()
        # Inputs that are always 0 make X^T X singular.
        damped.diagonal().add_(1e-12 * damped.diagonal().mean())
        return torch.cholesky_solve(self.xy, torch.linalg.cholesky(damped))

    def r2(self, solution: Tensor) -> float:
        """R2 of `solution` (d + 1, m) on these cases, at most 1; 1 if y is constant and predicted but for rounding."""
        errors = self.yy - 2 * (solution * self.xy).sum(0) + (solution * (self.xx @ solution)).sum(0)
        deviations = self.yy - self.y.square() / max(self.cases, 1)
        # The sums are differences of large numbers, so a constant y has rounding errors for deviations.
        least = max(1e-12, 1e-9 * float(self.yy.sum()))
        return float(1.0 - errors.sum().clamp_min(0.0) / deviations.sum().clamp_min(least))


def foldable_layers(student: nn.Module, linked: Sequence[str], example: Tensor) -> list[str]:
    """The layers that a fold changes: the first linked layer and all after it, in the order of the forward pass.

    Raises:
        UserError: a linked layer is not a convolution or fully connected layer, so not a linear map of its input; or a
            convolution to be changed has groups, or another padding than a number of zeros.
    """
    used = layers_in_use(student, example)
    others = [layer for layer in linked if layer not in used]
    if others:
        kind = type(student.get_submodule(others[0])).__name__
        raise UserError(
            f"Layer {others[0]} of the student is a {kind}: a fold changes convolutions and fully connected layers, "
            f"which are linear maps of their inputs. Link some of these instead: {', '.join(used)}."
        )
    layers = used[min(used.index(layer) for layer in linked) :]
    for layer in layers:
        _check_convolution(layer, student.get_submodule(layer))
    return layers


def _check_convolution(layer: str, module: nn.Module) -> None:
    if not isinstance(module, nn.Conv2d):
        return
    found = {
        f"{module.groups} groups": module.groups != 1,
        f"padding {module.padding!r}": isinstance(module.padding, str),
        f"padding mode {module.padding_mode}": module.padding_mode != "zeros",
    }
    if any(found.values()):
        raise UserError(
            f"Layer {layer} of the student has {' and '.join(name for name, there in found.items() if there)}: a fold "
            "changes convolutions without groups, whose padding is a number of zeros. Write the layer so, or link "
            "later layers only."
        )


def observations_needed(student: nn.Module, layers: Sequence[str]) -> dict[str, int]:
    """Layer -> fewest observations for its regression: more cases than unknowns after a fifth is held out.

    Only for fully connected layers, because an observation has many patches for a convolution.
    """
    modules = {layer: student.get_submodule(layer) for layer in layers}
    return {
        layer: -(-(module.in_features + 1) * HELD_OUT // (HELD_OUT - 1))
        for layer, module in modules.items()
        if isinstance(module, nn.Linear)
    }


@torch.no_grad()
def fold(
    student: nn.Module,
    layers: Sequence[str],
    target: Callable[[str, Tensor], Tensor],
    observations: Sequence[Tensor],
    own_rows: Callable[[str], Tensor | None] = lambda layer: None,
) -> Iterator[FoldedLayer]:
    """Fit `layers` of `student` to the features that `target` gives, in place; each step of the iterator fits one.

    Args:
        student: A plain net without hooks, in evaluation mode; called as `student(obs)`.
        layers: The result of `foldable_layers`.
        target: (layer, obs) -> the wanted output of the layer, (B, ...).
        observations: Batches of the student's input. Every fifth is held out; fewer than five are divided anew.
        own_rows: layer -> which of its outputs keep the student's own weights, (channels,) bool; None: none.

    Raises:
        UserError: too few observations for a layer's regression.
    """
    if 0 < len(observations) < HELD_OUT:
        observations = torch.cat(list(observations)).tensor_split(HELD_OUT)
    for layer in layers:
        yield _fold_layer(student, layer, target, observations, own_rows(layer))


@torch.no_grad()
def drop_biases(student: nn.Module, layers: Sequence[str], like: nn.Module, obs: Tensor) -> float:
    """Set the biases of `layers` of `student` to 0, and scale the weights of the last one.

    The folded biases are the teachers': thresholds that fit the screens of their games. They may cut off what matters
    in another game. The scale gives the layers after the last one inputs of the size that they have in a fresh net.

    Args:
        student: A folded net.
        layers: At least one, in the order of the forward pass.
        like: A fresh net of its shape.
        obs: A batch of their input.

    Returns:
        The factor of the last layer's weights: the root mean square of its output in `like` over that in `student`.
    """
    for layer in layers:
        bias: Tensor | None = getattr(student.get_submodule(layer), "bias", None)
        if bias is not None:
            bias.zero_()
    ours, wanted = (float(features_of(net, layers[-1:], obs)[layers[-1]].square().mean()) for net in (student, like))
    scale = math.sqrt(wanted / ours) if ours else 1.0
    student.get_submodule(layers[-1]).get_parameter("weight").mul_(scale)
    return scale


def _fold_layer(
    student: nn.Module,
    layer: str,
    target: Callable[[str, Tensor], Tensor],
    observations: Sequence[Tensor],
    own_rows: Tensor | None,
) -> FoldedLayer:
    module = student.get_submodule(layer)
    fitted, held_out = _moments(student, layer, target, observations)
    if not (fitted.yy.isfinite().all() and held_out.yy.isfinite().all()):
        raise UserError(
            f"The fold of layer {layer}: its links bring numbers that are not finite. Look at the features of the "
            "teachers that are linked there."
        )
    if fitted.cases <= fitted.inputs or not held_out.cases:
        have = sum(map(len, observations))
        in_proportion = math.ceil((fitted.inputs + 1) * have / max(fitted.cases, 1))
        needed = observations_needed(student, [layer]).get(layer, in_proportion)
        raise UserError(
            f"The fold of layer {layer} has {fitted.cases:,} cases for {fitted.inputs + 1:,} unknowns of each output "
            f"from {have:,} observations. Collect about {needed:,} observations."
        )
    solutions = {ridge: fitted.solve(ridge) for ridge in RIDGES}
    missed = {ridge: 1.0 - held_out.r2(solution) for ridge, solution in solutions.items()}
    ridge = max(ridge for ridge in RIDGES if missed[ridge] <= 1.02 * min(missed.values()) + 1e-6)
    weight, bias = solutions[ridge][:-1].T, solutions[ridge][-1]
    own = module.get_parameter("weight")
    fitted_rows = torch.arange(len(own)) if own_rows is None else (~own_rows).nonzero().squeeze(1)
    own[fitted_rows] = weight.reshape(own.shape)[fitted_rows].to(own.dtype)
    if module.bias is not None:
        module.get_parameter("bias")[fitted_rows] = bias[fitted_rows].to(own.dtype)
    return FoldedLayer(layer, held_out.r2(solutions[ridge]), fitted.cases, ridge)


def _moments(
    student: nn.Module, layer: str, target: Callable[[str, Tensor], Tensor], observations: Sequence[Tensor]
) -> tuple[Moments, Moments]:
    module = student.get_submodule(layer)
    parts: tuple[Moments, Moments] | None = None
    for index, obs in enumerate(observations):
        x, y = cases(module, input_of(student, layer, obs), target(layer, obs), index)
        if parts is None:
            first, second = (Moments(x.shape[1], y.shape[1], intercept=module.bias is not None) for _ in range(2))
            parts = first, second
        parts[index % HELD_OUT == HELD_OUT - 1].add(x, y)
    if parts is None:
        raise UserError(f"The fold of layer {layer} has no observations. Collect some.")
    return parts


def input_of(net: nn.Module, layer: str, obs: Tensor) -> Tensor:
    """The input of `layer` of `net` on `obs`, (B, ...)."""
    seen: list[Tensor] = []
    hook = net.get_submodule(layer).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    try:
        net(obs)
    finally:
        hook.remove()
    return seen[0]


def cases(module: nn.Module, x: Tensor, y: Tensor, batch: int = 0) -> tuple[Tensor, Tensor]:
    """The cases of a layer's regression: (n, d) and (n, m).

    Args:
        module: `nn.Conv2d` with zero padding and one group, or `nn.Linear`.
        x: The layer's input (B, ...).
        y: The layer's wanted output (B, ...).
        batch: Index of the batch, which selects the patches of a convolution that has many.
    """
    if not isinstance(module, nn.Conv2d):
        return x.flatten(0, -2), y.flatten(0, -2)
    outputs = y.flatten(2)
    every = max(1, outputs.shape[2] // POSITIONS)
    chosen = torch.arange(batch % every, outputs.shape[2], every, device=x.device)
    x = _windows(module, x)[:, chosen // y.shape[3], chosen % y.shape[3]]
    return x.flatten(0, 1).flatten(1), outputs[:, :, chosen].transpose(1, 2).flatten(0, 1)


def _windows(module: nn.Conv2d, x: Tensor) -> Tensor:
    """What the convolution reads at each position, (B, H, W, channels, kernel height, kernel width): a view."""
    vertical, horizontal = (int(side) for side in module.padding)
    x = F.pad(x, (horizontal, horizontal, vertical, vertical))
    (height, width), (down, right), (far, wide) = module.kernel_size, module.stride, module.dilation
    rows = (x.shape[2] - far * (height - 1) - 1) // down + 1
    columns = (x.shape[3] - wide * (width - 1) - 1) // right + 1
    image, channel, row, column = x.stride()
    return x.as_strided(
        (len(x), rows, columns, x.shape[1], height, width),
        (image, row * down, column * right, channel, row * far, column * wide),
    )
