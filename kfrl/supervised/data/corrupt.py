"""Corrupted images for L_3, the quality criterion of Anti-Distillation (section 4)."""

from __future__ import annotations

import torch

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
    count, _, height, width = images.pixels.shape
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(count, height * width, generator=generator).argsort(1) < round(share * height * width)
    noise = torch.randint(0, 256, images.pixels.shape, dtype=torch.uint8, generator=generator)
    device = images.pixels.device
    mask = hit.view(count, 1, height, width).to(device)
    return Images(torch.where(mask, noise.to(device), images.pixels), images.labels)
