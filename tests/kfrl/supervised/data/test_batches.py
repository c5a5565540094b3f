import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from kfrl.supervised.data.batches import Images, Loader, Normalisation, random_crop, split_off
from kfrl.supervised.data.sets import load_data


def images(count: int, channels: int = 1, size: int = 4) -> Images:
    pixels = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3)


def rows_of(loader: Loader, seed: int, epoch: int, start: int = 0) -> list[list[int]]:
    """Which images each batch holds, told by their mean."""
    means = loader.normalise(loader.images.pixels).mean((1, 2, 3))
    return [
        [int((means - picture.mean()).abs().argmin()) for picture in batch.images]
        for batch in loader.epoch(seed, epoch, start)
    ]


def test_an_epoch_holds_every_image_once_in_an_order_of_seed_and_epoch() -> None:
    loader = Loader(images(12), 4, Normalisation.none(1))
    first = rows_of(loader, 1, 0)
    assert sorted(row for batch in first for row in batch) == list(range(12))
    torch.manual_seed(99)
    assert rows_of(loader, 1, 0) == first
    assert rows_of(loader, 1, 1) != first != rows_of(loader, 2, 0)
    assert rows_of(loader, 1, 0, start=1) == first[1:]


def test_an_incomplete_batch_is_left_out_unless_it_is_the_only_one() -> None:
    assert [len(batch) for batch in rows_of(Loader(images(11), 4, Normalisation.none(1)), 1, 0)] == [4, 4]
    assert [len(batch) for batch in rows_of(Loader(images(3), 4, Normalisation.none(1)), 1, 0)] == [3]


def test_evaluation_sees_all_images_in_order_and_unchanged() -> None:
    held = images(10)
    loader = Loader(held, 4, Normalisation.none(1), pad=2, flip=True)
    batches = list(loader.ordered())
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert torch.equal((torch.cat([batch.images for batch in batches]) * 255).round().to(torch.uint8), held.pixels)


def test_normalisation_is_that_of_the_pixels_by_numpy() -> None:
    held = images(50, 3, 5)
    held.pixels[:, 1] //= 2
    own = Normalisation.of(held.pixels)
    scaled = held.pixels.numpy().astype(np.float64) / 255
    assert np.allclose(own.mean, scaled.mean((0, 2, 3)))
    assert np.allclose(own.std, scaled.std((0, 2, 3)))
    normalised = own(held.pixels)
    assert torch.allclose(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normalised.std((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5)


def windows(picture: Tensor, pad: int) -> list[Tensor]:
    """Every crop of one image, by slices."""
    channels, height, width = picture.shape
    padded = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=picture.dtype)
    padded[:, pad : pad + height, pad : pad + width] = picture
    places = range(2 * pad + 1)
    return [padded[:, top : top + height, left : left + width] for top in places for left in places]


def test_a_random_crop_is_one_of_the_windows_and_all_of_them_come() -> None:
    picture = torch.arange(1, 33, dtype=torch.uint8).view(2, 4, 4)
    crops = random_crop(picture.expand(400, -1, -1, -1), 1, flip=False)
    known = windows(picture, 1)
    found = [next(index for index, window in enumerate(known) if torch.equal(window, crop)) for crop in crops]
    assert set(found) == set(range(9))


def test_half_of_the_images_are_mirrored() -> None:
    picture = torch.arange(1, 17, dtype=torch.uint8).view(1, 4, 4)
    crops = random_crop(picture.expand(400, -1, -1, -1), 1, flip=True)
    mirrored = [any(torch.equal(window.flip(2), crop) for window in windows(picture, 1)) for crop in crops]
    plain = [any(torch.equal(window, crop) for window in windows(picture, 1)) for crop in crops]
    assert all(one or other for one, other in zip(mirrored, plain, strict=True))
    assert 150 < sum(mirrored) < 250


def test_validation_images_are_a_share_of_every_class_and_always_the_same() -> None:
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 20)[torch.randperm(70)]
    train, validation = split_off(labels, 0.1)
    assert torch.bincount(labels[validation]).tolist() == [4, 1, 2]
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(70))
    torch.manual_seed(5)
    assert torch.equal(split_off(labels, 0.1)[1], validation)
    assert validation.tolist() != sorted(range(70))[: len(validation)]
    assert len(split_off(labels, 0.0)[1]) == 0


def test_no_image_is_learned_from_in_one_run_and_kept_back_in_another() -> None:
    """A teacher that has all images must be chosen on none that its students, which have few, learn from."""
    labels = torch.tensor([0] * 400 + [1] * 123 + [2] * 247)[torch.randperm(770)]
    splits = [split_off(labels, 0.1, count=count) for count in (None, 3, 20, 77, 200, 500, 769, 770)]
    lacking = (labels != 1).nonzero().squeeze(1)
    splits.append(tuple(lacking[rows] for rows in split_off(labels[lacking], 0.1)))
    learned, kept_back = ([set(split[part].tolist()) for split in splits] for part in (0, 1))
    for one, other in itertools.product(learned, kept_back):
        assert not one & other
    sizes = [len(one) + len(other) for one, other in zip(learned, kept_back, strict=True)]
    assert sizes == pytest.approx([770, 3, 20, 77, 200, 500, 769, 770, 647], abs=2), "up to rounding in each class"
    assert splits[4][1].tolist() != splits[4][0].tolist()[: len(splits[4][1])]


PARTS = ("", "-half", "-other-half", "-no-7", "-half-no-2", "-other-half-no-7")


def test_no_image_of_a_part_of_a_set_is_learned_from_in_one_run_and_kept_back_in_another() -> None:
    splits = []
    for name in PARTS:
        data = load_data(f"digits{name}")
        splits.append([{image.numpy().tobytes() for image in data.train.pixels[rows]} for rows in data.split(0.1)])
    assert [len(kept_back) for _, kept_back in splits] == [144, 73, 71, 130, 59, 57]
    for (learned, _), (_, kept_back) in itertools.product(splits, splits):
        assert not learned & kept_back


def test_the_split_of_a_set_and_of_its_first_half_is_that_of_the_labels() -> None:
    """Earlier runs were split so."""
    for name in PARTS[:2]:
        data = load_data(f"digits{name}")
        for now, earlier in zip(data.split(0.1, 500), split_off(data.train.labels, 0.1, count=500), strict=True):
            assert torch.equal(now, earlier)


def test_the_test_and_validation_are_drawn_from_streams_of_their_own() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    both = [set(split_off(labels, 0.2, purpose)[1].tolist()) for purpose in ("validation", "test")]
    assert 20 < len(both[0] & both[1]) < 60, "a fifth of a fifth is 40"


def test_every_class_keeps_an_image_to_learn_from() -> None:
    labels = torch.tensor([0, 1, 1, 1])
    assert torch.bincount(labels[split_off(labels, 0.9)[0]]).tolist() == [1, 1]
