"""How much a loss bends: norms of its Hessian H, without H."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hessian_norm(loss: Tensor, parameters: Sequence[Tensor], steps: int = 0) -> Tensor:
    """An estimate of the square of a norm of H, the Hessian of `loss`; a scalar with a gradient.

    It is || H v ||^2, where v is drawn. For v of N(0, 1) its mean is || H ||_F^2 (Hutchinson's estimator). For the v
    of length 1 at which power iteration ends it is the largest eigenvalue's square, || H ||_2^2.

    Args:
        loss: A scalar whose graph is whole.
        parameters: What H is taken by; all have to count in the loss.
        steps: Of power iteration, at least; 0: Hutchinson's estimator.
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
