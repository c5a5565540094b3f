"""What a classifier says of corrupted images: L_3, the quality criterion of Anti-Distillation (section 4)."""

from __future__ import annotations

import torch

from kfrl.supervised.data.batches import Images


def corrupted(images: Images, share: float, seed: int = 0) -> Images:
    """The images with `share` of the pixels of each replaced by noise, drawn evenly from all values.

    The paper leaves the neighbourhood U_delta(x) open and draws quality over the "percentage of image corrupted"
    (figure 2); delta is that share here.

    Args:
        images: (N, C, H, W) uint8 with labels; they stay as they are.
        share: In [0, 1]; the same number of pixels in every image, all channels of each.
        seed: Which pixels, and which noise.
    """
    images = images.decoded()
    count, _, height, width = images.pixels.shape
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(count, height * width, generator=generator).argsort(1) < round(share * height * width)
    noise = torch.randint(0, 256, images.pixels.shape, dtype=torch.uint8, generator=generator)
    device = images.pixels.device
    mask = hit.view(count, 1, height, width).to(device)
    return Images(torch.where(mask, noise.to(device), images.pixels), images.labels)
