"""Corrupted images for L_3, the quality criterion of Anti-Distillation (section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from kfrl.supervised.data.batches import Images


def corrupted(images: Images, share: float, seed: int = 0) -> Images:
    """Replace `share` of the pixels of each image by uniform noise.

    The paper does not define the neighbourhood U_delta(x), and plots quality over the "percentage of image corrupted"
    (figure 2); delta is that share here.

    Args:
        images: (N, C, H, W) uint8 with labels; not modified.
        share: In [0, 1]; the same number of pixels in every image, all channels of each.
        seed: Of the choice of pixels, and of the noise.
    """
    images = images.decoded()
    hit, noise = draw_noise(images.pixels.shape, share, torch.Generator().manual_seed(seed))
    device = images.pixels.device
    return Images(torch.where(hit.to(device), noise.to(device), images.pixels), images.labels)


def draw_noise(shape: tuple[int, ...], share: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw on the CPU which pixels noise replaces, the same number in each image, and the noise itself.

    Args:
        shape: (N, C, H, W) of the images.
        share: Of the pixels, in [0, 1].
        generator: Default: torch's own.

    Returns:
        (N, 1, H, W) bool and (N, C, H, W) uint8.
    """
    count, _, height, width = shape
    hit = torch.rand(count, height * width, generator=generator).argsort(1) < round(share * height * width)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return hit.view(count, 1, height, width), noise
