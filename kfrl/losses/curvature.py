"""Norms of the Hessian H of a loss, computed without H itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hessian_norm(loss: Tensor, parameters: Sequence[Tensor], steps: int = 0) -> Tensor:
    """An estimate of the squared norm of H, the Hessian of `loss`: a scalar with a gradient.

    It is || H v ||^2 for a vector v. If v is drawn from N(0, 1), the mean is || H ||_F^2 (Hutchinson's estimator). If v
    is the result of power iteration, of length 1, it is the square of the largest absolute eigenvalue, || H ||_2^2.

    Args:
        loss: A scalar, before its backward pass.
        parameters: H has the second derivatives by these; the loss depends on each.
        steps: Of power iteration. 0: Hutchinson's estimator.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    vector = [torch.randn_like(parameter) for parameter in parameters]
    for _ in range(steps):
        vector = _unit(torch.autograd.grad(gradients, parameters, vector, retain_graph=True))
    product = torch.autograd.grad(gradients, parameters, vector, create_graph=True)
    return torch.stack([part.square().sum() for part in product]).sum()


def _unit(vector: Sequence[Tensor]) -> list[Tensor]:
    length = torch.stack([part.square().sum() for part in vector]).sum().sqrt()
    return [part / length.clamp(min=torch.finfo(length.dtype).tiny) for part in vector]
