"""Folders and archives of images by class, in the layouts that people have."""

import io
import itertools
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kfrl.errors import UserError
from kfrl.supervised.data.batches import FileImages, Loader, Normalisation
from kfrl.supervised.data.corrupt import corrupted
from kfrl.supervised.data.folders import read_folder
from kfrl.supervised.data.sets import load_data

Write = Callable[..., Path]


def picture(array: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    return bytes(cv2.imencode(suffix, array)[1])


def red(size: int = 6) -> NDArray[np.uint8]:
    """In OpenCV's order."""
    image = np.zeros((size, size, 3), dtype=np.uint8)
    image[:, :, 2] = 200
    return image


def by_class(top: str = "", classes: Iterable[str] = ("cat", "dog"), count: int = 10) -> dict[str, bytes]:
    """So many pictures of each class."""
    return {f"{top}{name}/{number}.png": picture(red()) for name in classes for number in range(count)}


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def packed(path: Path, files: Mapping[str, bytes]) -> Path:
    """As a zip or a tar, or in a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif path.suffix == ".gz":
        tar(path, files)
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Writes files into a folder."""
    return lambda files: packed(tmp_path / "my-images", files)


FORMS = pytest.mark.parametrize("form", ["it", "it.zip", "it.tar.gz"])


def test_a_folder_of_images_by_class(folder: Write) -> None:
    gray = np.full((6, 6), 7, dtype=np.uint8)
    files = {"train/b/1.png": picture(red()), "train/a/2.PNG": picture(gray), "test/b/3.png": picture(red())}
    loaded = load_data(str(folder(files)))
    assert (loaded.name, loaded.classes, loaded.shape) == ("my-images", ("a", "b"), (3, 6, 6))
    assert loaded.train.labels.tolist() == [0, 1]
    assert loaded.train.pixels[0].unique().tolist() == [7]
    assert loaded.train.pixels[1].amax((1, 2)).tolist() == [200, 0, 0]
    assert loaded.test.labels.tolist() == [1]


@FORMS
def test_the_official_tiny_imagenet(tmp_path: Path, form: str) -> None:
    """Its side files, and test images that have no labels."""
    top = "tiny-imagenet-200"
    files = {
        f"{top}/train/{name}/images/{name}_{number}.JPEG": picture(red(), ".jpg")
        for name in ("n01", "n02")
        for number in range(3)
    }
    files |= {f"{top}/train/{name}/{name}_boxes.txt": b"n01_0.JPEG\t0\t0\t1\t1\n" for name in ("n01", "n02")}
    files |= {
        f"{top}/{split}/images/{split}_{n}.JPEG": picture(red(), ".jpg") for split in ("val", "test") for n in (0, 1)
    }
    files |= {
        f"{top}/val/val_annotations.txt": b"val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn01\t0\t0\t1\t1\n",
        f"{top}/wnids.txt": b"n01\nn02\n",
        f"{top}/words.txt": b"n01\tgoldfish\n",
    }
    held = read_folder(packed(tmp_path / form, files))
    assert held.classes == ("n01", "n02")
    assert held.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert held.test.labels.tolist() == [1, 0], "val is the test, as its labels alone are public"
    assert held.validation is None
    assert any(note.startswith("left out, images without labels: 2") for note in held.notes)
    assert any(note.endswith("4 .txt") for note in held.notes)


def test_a_folder_without_test_images_gives_a_fifth_of_each_class(folder: Write) -> None:
    files = {f"{label}/{number}.png": picture(red()) for label in "xy" for number in range(10)}
    loaded = load_data(str(folder(files)))
    assert torch.bincount(loaded.train.labels).tolist() == [8, 8]
    assert torch.bincount(loaded.test.labels).tolist() == [2, 2]


def test_images_of_several_sizes_need_a_size(folder: Write) -> None:
    path = str(
        folder({"train/a/1.png": picture(red(6)), "train/b/2.png": picture(red(8)), "test/a/3.png": picture(red())})
    )
    with pytest.raises(UserError, match=r"of 2 sizes.*--image-size"):
        load_data(path)
    assert load_data(path, image_size=4).shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": b"nothing"}, "holds no images by class"),
        ({"train/a/1.png": b"no picture"}, r"train/a/1\.png is damaged, or not an image"),
        ({"train/a/1.png": b""}, r"train/a/1\.png is damaged, or not an image"),
        ({"train/a/1.png": picture(red()), "test/b/1.png": picture(red())}, "test images of 'b', a class without"),
        ({"train/a/1.png": picture(red()), "val/b/1.png": picture(red())}, "val images of 'b', a class without"),
        ({"test/a/1.png": picture(red()), "val/a/1.png": picture(red())}, "no training images: expected train/CLASS"),
        ({"train/a/1.png": picture(red()), "test/a/1.png": picture(red()), "b/1.png": picture(red())}, "beside it b."),
        (by_class(count=2), "has no test images of its own.*no class has 3 images"),
        ({"1.png": picture(red())}, r"only images without a class \(e\.g\. .*1.png\)"),
        (
            {"train/1.png": picture(red()), "test/1.png": picture(red())},
            r"only images without a class \(e\.g\. .*1.png\)",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(folder: Write, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(str(folder(files)))


def test_a_half_downloaded_archive_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), dtype=np.uint8)
    files = {f"train/{label}/{n}.png": picture(noise[n]) for label in "ab" for n in range(20)}
    path = tar(tmp_path / "images.tar.gz", files)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"images\.tar\.gz is damaged"):
        load_data(str(path))


def test_an_archive_of_something_else_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "images.tar.gz"
    path.write_bytes(b"no archive" * 500)
    with pytest.raises(UserError, match=r"damaged .*, and was not used: [^.:]+\. Copy it here once more") as caught:
        load_data(str(path))
    assert "\n" not in str(caught.value)


# --- as people have them ------------------------------------------------------------------------------------


def test_val_validates_where_there_are_test_images_too(folder: Write) -> None:
    root = folder(by_class("train/", count=4) | by_class("val/", count=2) | by_class("test/", count=1))
    loaded = load_data(str(root))
    assert loaded.validation is not None
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [8, 4, 2]
    half, without = load_data(f"{root}-half").validation, load_data(f"{root}-no-cat").validation
    assert half is not None and half.labels.tolist() == [0, 0]
    assert without is not None and without.labels.tolist() == [1, 1]


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("train", "valid")])
def test_splits_under_other_names(folder: Write, names: tuple[str, str]) -> None:
    loaded = load_data(str(folder(by_class(f"{names[0]}/") | by_class(f"{names[1]}/", count=3))))
    assert (len(loaded.train), len(loaded.test), loaded.validation) == (20, 6, None)


def test_classes_may_be_called_as_splits_are(folder: Write) -> None:
    assert load_data(str(folder(by_class(classes=("car", "test", "train"))))).classes == ("car", "test", "train")


@FORMS
def test_folders_with_dots_are_classes_and_what_macos_packs_is_none(tmp_path: Path, form: str) -> None:
    files = by_class("birds/", ("001.Black_footed", "002.Laysan"))
    files |= {f"__MACOSX/{name.replace('/', '/._')}": b"\0\5\x16\7Mac OS X" for name in files}
    files |= {f"birds/001.Black_footed/._{n}.png": b"\0\5\x16\7" for n in range(3)}
    held = read_folder(packed(tmp_path / form, files | {"birds/.DS_Store": b"\0", "birds/.hidden/1.png": b""}))
    assert held.classes == ("001.Black_footed", "002.Laysan")
    assert (len(held.train), len(held.test)) == (16, 4)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"])
def test_every_format_that_torchvisions_image_folder_lists(folder: Write, suffix: str) -> None:
    image = red()[:, :, 2] if suffix == ".pgm" else red()
    loaded = load_data(str(folder({f"{name}/{n}{suffix}": picture(image, suffix) for name in "ab" for n in range(5)})))
    assert len(loaded.train) == 8
    assert float(loaded.train.pixels[:, 0].float().mean()) == pytest.approx(200, abs=2)


def test_nothing_is_left_out_without_a_word(folder: Write) -> None:
    odd = {"cat/1.gif": b"GIF89a", "dog/a.heic": b"", "dog/b.heic": b"", "preview.png": picture(red(9))}
    notes = load_data(str(folder(by_class() | odd))).notes
    assert any("(cat, dog)" in note for note in notes)
    assert any(note.endswith(": 2 .heic, 1 .gif") for note in notes)
    assert any(note == "left out, images in no class folder: 1, e.g. preview.png" for note in notes)
    assert any("the test is on 4 of the images" in note for note in notes)


def test_folders_in_a_class_are_of_that_class(folder: Write) -> None:
    loaded = load_data(str(folder({f"{name}/day{n % 2}/{n}.png": picture(red()) for name in "ab" for n in range(10)})))
    assert (loaded.classes, len(loaded.train)) == (("a", "b"), 16)


def test_links_to_folders_are_followed_and_circles_refused(folder: Write, tmp_path: Path) -> None:
    real = folder(by_class())
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("cat", "dog"):
        os.symlink(real / name, linked / name, target_is_directory=True)
    assert len(load_data(str(linked)).train) == 16
    os.symlink(real, real / "cat" / "again", target_is_directory=True)
    with pytest.raises(UserError, match=r"cat.again is a link to a folder that contains the link"):
        load_data(str(real))
    os.symlink(tmp_path / "gone.png", real / "cat" / "lost.png")
    (real / "cat" / "again").unlink()
    with pytest.raises(UserError, match="No such file"):
        load_data(str(linked))


def test_links_in_an_archive(tmp_path: Path) -> None:
    def linking(name: str, target: str) -> Path:
        path = tar(tmp_path / "links.tar.gz", {})
        with tarfile.open(path, "w:gz") as archive:
            for held, content in by_class().items():
                member = tarfile.TarInfo(held)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            archive.addfile(_directory("other"))
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        return path

    assert len(read_folder(linking("dog/10.png", "../cat/0.png")).train) == 17
    with pytest.raises(UserError, match=r"bird is a link to a folder.*--dereference"):
        read_folder(linking("bird", "other"))


def _directory(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    return member


def test_resizing_a_named_set_is_resizing_its_pictures(folder: Write) -> None:
    digits = load_data("digits")
    files = {
        f"{'train' if split is digits.train else 'test'}/{label}/{n}.png": picture(split.pixels[n, 0].numpy())
        for split in (digits.train, digits.test)
        for n, label in itertools.islice(enumerate(split.labels.tolist()), 60)
    }
    for size in (5, 12):
        named, read = load_data("digits", image_size=size), load_data(str(folder(files)), image_size=size)
        assert named.shape == read.shape == (1, size, size)
        order = torch.tensor(sorted(range(60), key=lambda n: (int(digits.train.labels[n]), f"{n}.png")))
        assert torch.equal(named.train.pixels[order], read.train.pixels)


def noise(folder: Path, splits: Iterable[str] = ("train", "val")) -> Path:
    """ImageNet's layout: train/CLASS/NAME.JPEG, val/CLASS/NAME.JPEG, of several sizes."""
    draw = np.random.default_rng(0)
    files = {
        f"{split}/{name}/{number}.JPEG": picture(draw.integers(0, 256, (8 + number, 9, 3), dtype=np.uint8), ".jpg")
        for split in splits
        for name in ("cat", "dog")
        for number in range(5)
    }
    return packed(folder / "pets", files)


def test_a_folder_too_large_for_memory_is_read_batch_by_batch_and_gives_the_same(tmp_path: Path) -> None:
    folder = noise(tmp_path)
    held, left = read_folder(folder, 8), read_folder(folder, 8, memory=20 * 192 - 1)
    assert isinstance(left.train, FileImages) and left.train.pixels.numel() == 0
    assert "images stay in their files" in left.notes[-2] + left.notes[-1]
    assert not isinstance(read_folder(folder, 8, memory=20 * 192).train, FileImages)
    normalise = Normalisation.of(left.train.sample())
    assert normalise == Normalisation.of(held.train.sample())
    both = []
    for images in (held.train, left.train):
        loader = Loader(images, 3, normalise, pad=1, flip=True)
        torch.manual_seed(4)
        both.append([*loader.epoch(1, 0), *loader.epoch(1, 1, start=2), loader.random(4), *loader.ordered()])
    assert len(both[0]) == len(both[1]) == 3 + 1 + 1 + 4
    for ours, theirs in zip(*both, strict=True):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)
    rows = torch.tensor([True, False] * 5)
    assert torch.equal(left.train.take(rows).decoded().pixels, held.train.take(rows).pixels)
    assert torch.equal(corrupted(left.test, 0.2).pixels, corrupted(held.test, 0.2).pixels)


def test_files_of_other_sizes_or_damaged_are_named_when_they_are_read(tmp_path: Path) -> None:
    folder = noise(tmp_path)
    with pytest.raises(UserError, match=r"1\.JPEG is of size \(9, 9\), others \(8, 9\): give --image-size N"):
        read_folder(folder, memory=1).train.decoded()
    (folder / "train/dog/3.JPEG").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"dog/3\.JPEG is damaged"):
        read_folder(folder, 8, memory=1).train.decoded()
