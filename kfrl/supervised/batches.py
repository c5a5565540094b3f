"""Batches out of images in memory: order, augmentation and normalisation on whole tensors, no worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kfrl.seeding import stream


@dataclass(frozen=True)
class Images:
    """Labelled images in memory."""

    pixels: Tensor
    """(N, C, H, W) uint8"""
    labels: Tensor
    """(N,) int64, in [0, number of classes)"""

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def take(self, rows: Tensor) -> Images:
        """Some of the images, (n,) int64 or (N,) bool."""
        return Images(self.pixels[rows], self.labels[rows])

    def to(self, device: torch.device) -> Images:
        """The same on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Batch:
    """What an update learns from."""

    images: Tensor
    """(B, C, H, W) float, augmented and normalised."""
    labels: Tensor
    """(B,) int64"""


@dataclass(frozen=True)
class Normalisation:
    """x -> (x / 255 - mean) / std, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, pixels: Tensor) -> Normalisation:
        """That of the images (N, C, H, W) uint8 themselves, exactly, from the counts of the 256 values."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean, std = [], []
        for channel in pixels.unbind(1):
            counts = torch.zeros(256, dtype=torch.float64)
            for start in range(0, len(channel), 4096):
                counts += torch.bincount(channel[start : start + 4096].flatten().cpu(), minlength=256)
            weights = counts / channel.numel()
            average = (weights * levels).sum()
            mean.append(float(average))
            # Images of one colour have nothing to scale.
            std.append(float((weights * (levels - average).square()).sum().sqrt()) or 1.0)
        return cls(tuple(mean), tuple(std))

    @classmethod
    def none(cls, channels: int) -> Normalisation:
        """Leaves pixels in [0, 1]."""
        return cls((0.0,) * channels, (1.0,) * channels)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float."""
        scale = torch.tensor([1 / (255 * std) for std in self.std], device=pixels.device)
        shift = torch.tensor([-mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=pixels.device)
        return torch.mul(pixels, scale[:, None, None]).add_(shift[:, None, None])


def random_crop(pixels: Tensor, pad: int, flip: bool) -> Tensor:
    """Pad with black, cut a window of the old size at random, and flip half of the images if asked.

    Args:
        pixels: (B, C, H, W), any type.
        pad: Pixels on each side.
        flip: Mirror left and right, each image with chance 1/2.
    """
    count, _, height, width = pixels.shape
    top, left = torch.randint(2 * pad + 1, (2, count)).to(pixels.device)
    windows = F.pad(pixels, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    cut = windows[torch.arange(count, device=pixels.device), :, top, left]
    if not flip:
        return cut
    mirrored = torch.rand(count).to(pixels.device) < 0.5
    return torch.where(mirrored[:, None, None, None], cut.flip(3), cut)


@dataclass(frozen=True)
class Loader:
    """Makes batches of images."""

    images: Images
    batch_size: int
    normalise: Normalisation
    channels_last: bool = False
    pad: int = 0
    """0: no random crop."""
    flip: bool = False

    def __len__(self) -> int:
        """Batches of an epoch. An incomplete one is left out, unless it is the only one."""
        return max(1, len(self.images) // self.batch_size)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch number `epoch` from number `start` on, in an order that seed and epoch determine.

        Augmentation draws from torch's global generator.
        """
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(stream(seed, epoch + 1)))
        for number in range(start, len(self)):
            rows = order[number * self.batch_size : (number + 1) * self.batch_size]
            chosen = self.images.take(rows.to(self.images.labels.device))
            pixels = random_crop(chosen.pixels, self.pad, self.flip) if self.pad else chosen.pixels
            yield Batch(self.normalised(pixels), chosen.labels)

    def ordered(self, batch_size: int = 1000) -> Iterator[Batch]:
        """All images as they are, for evaluation."""
        for start in range(0, len(self.images), batch_size):
            rows = slice(start, start + batch_size)
            yield Batch(self.normalised(self.images.pixels[rows]), self.images.labels[rows])

    def normalised(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> what a net takes."""
        images = self.normalise(pixels)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


def split_off(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Rows for training and for validation: `share` of every class, always the same ones.

    Args:
        labels: (N,)
        share: In [0, 1).

    Returns:
        Two ascending tensors of rows, disjoint and together all.
    """
    generator = torch.Generator().manual_seed(0)
    kept_back: list[Tensor] = []
    for label in sorted(set(labels.tolist())):
        rows = (labels == label).nonzero().squeeze(1)
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        kept_back.append(shuffled[: round(share * len(rows))])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(kept_back)] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)
