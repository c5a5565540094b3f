import pytest
import torch

from kfrl.supervised.data.batches import Images
from kfrl.supervised.data.corrupt import corrupted, draw_noise

GRAY = Images(torch.full((20, 2, 10, 10), 7, dtype=torch.uint8), torch.arange(20))


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_same_share_of_every_image_is_noise(share: float) -> None:
    noisy = corrupted(GRAY, share)
    # One value in 256 of the noise is the old one.
    touched = (noisy.pixels != 7).any(1).flatten(1).sum(1)
    assert int(touched.max()) <= 100 * share
    assert int(touched.min()) >= 100 * share - 2
    assert torch.equal(noisy.labels, GRAY.labels)
    assert bool((GRAY.pixels == 7).all())


def test_noise_covers_all_values_evenly_and_differs_between_images() -> None:
    noisy = corrupted(GRAY, 1.0).pixels.to(torch.float32)
    assert float(noisy.mean()) == pytest.approx(127.5, abs=5)
    assert (float(noisy.min()), float(noisy.max())) == (0.0, 255.0)
    masks = (corrupted(GRAY, 0.3).pixels != 7).any(1)
    assert not torch.equal(masks[0], masks[1])


def test_a_seed_is_a_corruption() -> None:
    assert torch.equal(corrupted(GRAY, 0.5).pixels, corrupted(GRAY, 0.5).pixels)
    assert not torch.equal(corrupted(GRAY, 0.5).pixels, corrupted(GRAY, 0.5, seed=1).pixels)


def test_noise_is_drawn_anew_each_time_without_a_generator() -> None:
    first, second = (draw_noise((3, 2, 4, 5), 0.5) for _ in range(2))
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    assert first[0].shape == (3, 1, 4, 5) and first[0].flatten(1).sum(1).tolist() == [10, 10, 10]
    assert first[1].shape == (3, 2, 4, 5)
