"""Batches of images: order, augmentation and normalisation on whole tensors, without worker processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from kfrl.seeding import stream
from kfrl.training.ranks import ALONE, Ranks

SAMPLED = 4096
"""Number of images that mean and deviation are computed on, for images in files."""


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
        """The images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def ahead(self, rows: Tensor | slice) -> Callable[[], Tensor]:
        """Begin to read some of the images; the returned function waits for them, (n, C, H, W) uint8."""
        return lambda: self.pixels[rows.to(self.labels.device) if isinstance(rows, Tensor) else rows]

    def sample(self) -> Tensor:
        """The pixels that mean and deviation are computed on, (n, C, H, W) uint8: here all of them."""
        return self.pixels

    def decoded(self) -> Images:
        """All images in memory."""
        return self


@dataclass(frozen=True)
class FileImages(Images):
    """Labelled images in files, decoded when a batch needs them; `pixels`, (0, C, H, W), is empty."""

    files: tuple[Path, ...] = ()
    decode: Callable[[Path], Tensor] = field(default=lambda path: torch.empty(0), repr=False)
    """A file's image, (C, H, W) uint8."""

    def take(self, rows: Tensor) -> FileImages:
        """Some of the images, (n,) int64 or (N,) bool; they stay in their files."""
        chosen = torch.arange(len(self.files))[rows.cpu()].tolist()
        return replace(self, labels=self.labels[rows], files=tuple(self.files[row] for row in chosen))

    def to(self, device: torch.device) -> FileImages:
        """The images, with pixels that will be decoded to `device`."""
        return replace(self, labels=self.labels.to(device))

    def ahead(self, rows: Tensor | slice) -> Callable[[], Tensor]:
        """Begin to decode some of the images in threads."""
        chosen = self.files[rows] if isinstance(rows, slice) else [self.files[row] for row in rows.tolist()]
        images = _decoders().map(self.decode, chosen)
        return lambda: torch.stack(list(images)).to(self.labels.device)

    def sample(self) -> Tensor:
        """At most `SAMPLED` images, evenly spread."""
        return self.ahead(torch.arange(0, len(self), -(-len(self) // SAMPLED)))()

    def decoded(self) -> Images:
        """All images in memory."""
        return Images(self.ahead(slice(None))(), self.labels)


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="decode")


@dataclass(frozen=True)
class Batch:
    """A batch of images for one update."""

    images: Tensor
    """(B, C, H, W) float, augmented and normalised."""
    labels: Tensor
    """(B,) int64"""
    rows: Tensor | None = None
    """(B,) int64, indices of the images in the training images."""


@dataclass(frozen=True)
class Normalisation:
    """x -> (x / 255 - mean) / std, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, pixels: Tensor) -> Normalisation:
        """The exact normalisation of images (N, C, H, W) uint8, from the counts of the 256 values."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean, std = [], []
        for channel in pixels.unbind(1):
            counts = torch.zeros(256, dtype=torch.float64)
            for start in range(0, len(channel), 4096):
                counts += torch.bincount(channel[start : start + 4096].flatten().cpu(), minlength=256)
            weights = counts / channel.numel()
            average = (weights * levels).sum()
            mean.append(float(average))
            # A channel of one value has the deviation 0.
            std.append(float((weights * (levels - average).square()).sum().sqrt()) or 1.0)
        return cls(tuple(mean), tuple(std))

    @classmethod
    def none(cls, channels: int) -> Normalisation:
        """No normalisation: pixels stay in [0, 1]."""
        return cls((0.0,) * channels, (1.0,) * channels)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float."""
        scale = torch.tensor([1 / (255 * std) for std in self.std], device=pixels.device)
        shift = torch.tensor([-mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=pixels.device)
        return torch.mul(pixels, scale[:, None, None]).add_(shift[:, None, None])


def random_crop(pixels: Tensor, pad: int, flip: bool, kept: slice = slice(None), drawn: int | None = None) -> Tensor:
    """Pad with black, crop a random window of the old size, and mirror half of the images if `flip`.

    Args:
        pixels: (B, C, H, W), any type.
        pad: Pixels on each side.
        flip: Mirror left and right, each image with chance 1/2.
        kept: Positions of these images in a batch of `drawn` images; each gets the same crop as in that batch.
        drawn: Number of images in the batch. Default: the number of these images.
    """
    _, _, height, width = pixels.shape
    count = len(pixels) if drawn is None else drawn
    top, left = torch.randint(2 * pad + 1, (2, count))[:, kept].to(pixels.device)
    windows = F.pad(pixels, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    cut = windows[torch.arange(len(pixels), device=pixels.device), :, top, left]
    if not flip:
        return cut
    mirrored = torch.rand(count)[kept].to(pixels.device) < 0.5
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
    ranks: Ranks = ALONE
    """Each of n processes takes its share of every training batch, and every n-th batch of an evaluation."""

    def __len__(self) -> int:
        """Number of batches in an epoch. An incomplete one is left out, unless it is the only one."""
        return max(1, len(self.images) // self.batch_size)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch number `epoch` from number `start` on, in an order that seed and epoch determine.

        Augmentation draws from torch's global generator.
        """
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(stream(seed, epoch + 1)))
        shares = [order[number * self.batch_size :][: self.batch_size] for number in range(start, len(self))]
        reading = self._read(shares[0]) if shares else None
        for share, following in zip(shares, [*shares[1:], None], strict=True):
            assert reading is not None
            pixels, reading = reading(), None if following is None else self._read(following)
            yield self._augmented(share, pixels)

    def random(self, count: int) -> Batch:
        """Images drawn at random, with replacement, by torch's global generator; `count` for each process."""
        rows = torch.randint(len(self.images), (count * self.ranks.world,))
        return self._augmented(rows, self._read(rows)())

    @property
    def _own(self) -> slice:
        """This process's share of the rows of a batch."""
        return slice(self.ranks.rank, None, self.ranks.world)

    def _read(self, rows: Tensor) -> Callable[[], Tensor]:
        return self.images.ahead(rows[self._own])

    def _augmented(self, rows: Tensor, pixels: Tensor) -> Batch:
        """This process's share of a batch, augmented and normalised; `pixels` are those of the share."""
        if self.pad:
            pixels = random_crop(pixels, self.pad, self.flip, self._own, len(rows))
        own = rows[self._own].to(self.images.labels.device)
        return Batch(self.normalised(pixels), self.images.labels[own], own)

    def ordered(self) -> Iterator[Batch]:
        """All images in order and without augmentation, for evaluation, in batches of at most `batch_size`."""
        for start in range(0, len(self.images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield Batch(self.normalised(self.images.ahead(rows)()), self.images.labels[rows])

    def normalised(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the net's input."""
        images = self.normalise(pixels)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


Purpose = Literal["validation", "test"]
"""The use of held-back images. Each has its own stream of random numbers."""


def split_off(
    labels: Tensor, share: float, purpose: Purpose = "validation", count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Divide rows into training rows and held-back rows: `share` of every class, always the same ones.

    Every class has one order of its rows, independent of other classes. Held-back rows are taken from its front,
    training rows from its back. So with fewer rows (`count`), or in a set that lacks a class, no training row is held
    back elsewhere with the same share. A set whose labels are renumbered, or that has further rows of a class, gives
    its images other numbers here to keep that order: see `Data.groups`.

    Args:
        labels: (N,), not negative: the classes, or `Data.groups`.
        share: In [0, 1). A class has at least one training row.
        purpose: The use of the held-back rows.
        count: Number of rows in all, up to rounding in each class. Default: all.

    Returns:
        Two ascending, disjoint tensors of rows; without `count` they contain all rows together.
    """
    seed = get_args(Purpose).index(purpose)
    learned, kept_back = torch.zeros(2, len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(stream(seed, label)))]
        taken = len(rows) if count is None else max(1, round(count / len(labels) * len(rows)))
        kept = min(round(share * taken), taken - 1)
        kept_back[rows[:kept]] = True
        learned[rows[len(rows) - taken + kept :]] = True
    return learned.nonzero().squeeze(1), kept_back.nonzero().squeeze(1)
