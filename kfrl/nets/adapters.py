"""Q: trainable linear maps from a teacher's pre-activation to the shape of a student's layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import unknown
from kfrl.nets.linear import linear

KINDS = ("conv1x1", "dense", "low-rank")


class Conv1x1(nn.Module):
    """A 1x1 convolution, then a bilinear resize if the maps differ in size."""

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        """Map (C, H, W) to (C', H', W')."""
        super().__init__()
        self.size = tuple(out_shape[1:]) if tuple(in_shape[1:]) != tuple(out_shape[1:]) else None
        self.weight = nn.Parameter(_matrix(out_shape[0], in_shape[0])[:, :, None, None])

    def forward(self, z: Tensor, scale: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), times `scale`; scaling the weight is cheaper than scaling the map."""
        mapped = F.conv2d(z, self.weight * scale)
        if self.size is None:
            return mapped
        return F.interpolate(mapped, self.size, mode="bilinear", align_corners=False)


class Dense(nn.Module):
    """The paper's Q: a matrix of dim(student layer) x dim(teacher layer)."""

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        """Map any shape to any shape; both are flattened."""
        super().__init__()
        self.out_shape = tuple(out_shape)
        self.weight = nn.Parameter(_matrix(prod(out_shape), prod(in_shape)))

    def forward(self, z: Tensor, scale: Tensor) -> Tensor:
        """(B, *in_shape) -> (B, *out_shape), times `scale`; scaling the output is cheaper than scaling the weight."""
        return linear(z.flatten(1), self.weight).view(-1, *self.out_shape) * scale


class LowRank(nn.Module):
    """The dense Q as a product of two matrices of rank `rank`."""

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], rank: int) -> None:
        """Map any shape to any shape through a vector of `rank` numbers."""
        super().__init__()
        self.out_shape = tuple(out_shape)
        self.down = nn.Parameter(_matrix(rank, prod(in_shape)))
        self.up = nn.Parameter(_matrix(prod(out_shape), rank))

    def forward(self, z: Tensor, scale: Tensor) -> Tensor:
        """(B, *in_shape) -> (B, *out_shape), times `scale`."""
        mapped = linear(linear(z.flatten(1), self.down * scale), self.up)
        return mapped.view(-1, *self.out_shape)


Transform = Conv1x1 | Dense | LowRank


def build_transform(kind: str, in_shape: Sequence[int], out_shape: Sequence[int], rank: int = 64) -> Transform:
    """Build Q from a teacher layer of `in_shape` to a student layer of `out_shape` (without the batch dimension).

    Q starts as the identity if it is square, else orthogonal, so that it does not distort the teacher's features.

    Args:
        kind: `conv1x1`: a 1x1 convolution between two maps, else dense. `dense`: always dense. `low-rank`: low-rank
            if that has fewer parameters than dense, else dense.
        in_shape: Shape of the teacher's layer.
        out_shape: Shape of the student's layer.
        rank: Rank of the `low-rank` kind.

    Raises:
        UserError: unknown kind.
    """
    if kind not in KINDS:
        raise unknown("transform", kind, KINDS)
    wide, narrow = prod(in_shape), prod(out_shape)
    if kind == "low-rank" and rank * (wide + narrow) < wide * narrow:
        return LowRank(in_shape, out_shape, rank)
    if kind == "conv1x1" and len(in_shape) == len(out_shape) == 3:
        return Conv1x1(in_shape, out_shape)
    return Dense(in_shape, out_shape)


def _matrix(rows: int, columns: int) -> Tensor:
    if rows == columns:
        return torch.eye(rows)
    return nn.init.orthogonal_(torch.empty(rows, columns))
