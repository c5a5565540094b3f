"""Images by class in a folder or an archive: find each file's split and class, and decode it."""

from __future__ import annotations

import math
import tarfile
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import torch

from kfrl.errors import UserError
from kfrl.supervised.data.batches import FileImages, Images, split_off
from kfrl.supervised.data.readers import Bytes, Content, as_images, naming

PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of the folders above the class folders -> their split."""
ANNOTATIONS = "val_annotations.txt"
"""Tiny-ImageNet's list: a line for each image in the folder `images` beside it, which begins with name and class."""
TEST_SHARE = 0.2
"""Share of the images that become the test, in a folder without test images."""


@dataclass
class _Layout:
    """The split and the class of each image."""

    placed: dict[str, list[tuple[PurePosixPath, str]]] = field(
        default_factory=lambda: {"train": [], "val": [], "test": []}
    )
    unlabelled: list[PurePosixPath] = field(default_factory=list)
    """Validation or test images without a class."""
    loose: list[PurePosixPath] = field(default_factory=list)
    """Other images without a class."""


def read_folder(path: Path, image_size: int | None = None, memory: float = math.inf) -> Content:
    """Read images by class from a folder, or from a .tar.gz or .zip of one.

    Layouts: `train/CLASS/...` with `test/CLASS/...`, `val/CLASS/...` or both; Tiny-ImageNet's, whose
    `val_annotations.txt` names the classes; or `CLASS/...` alone, of which a fifth of each class becomes the test.
    Without labelled test images, the validation images are the test images. Images in a subfolder of a class belong to
    the class.

    Args:
        path: The folder or archive.
        image_size: Resize to this height and width; without it all images have to be of one size.
        memory: Bytes. A folder of images that needs more is not loaded; its files are decoded batch by batch.

    Raises:
        UserError: a damaged file, images of different sizes, or no images by class.
    """
    with naming(path):
        held = {name: content for name, content in _entries(path) if not _is_side_file(name)}
    layout = _lay_out(path, sorted(filter(_is_picture, held)), _annotations(held))
    if not layout.placed["train"]:
        found = f"only images without a class (e.g. {layout.loose[0]})" if layout.loose else "no images by class"
        raise UserError(f"{path} holds {found}: expected train/CLASS/NAME.jpg, or CLASS/NAME.jpg.")
    notes = _left_out(held, layout)
    if path.is_dir():
        first = _decode_file(path / layout.placed["train"][0][0], image_size)
        count = sum(map(len, layout.placed.values()))
        if count * first.size > memory:
            return _in_files(path, layout, first, image_size, notes)
        held.update((name, _content(path / name)) for images in layout.placed.values() for name, _ in images)
    decoded = {
        split: [(label, _decode(held.pop(name), f"{path}: {name}", image_size)) for name, label in images]
        for split, images in layout.placed.items()
    }
    return _assemble(path, decoded, notes)


# --- files --------------------------------------------------------------------------------------------------


def _entries(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Every file by its path below the root, with the content of lists, and of images in archives."""
    if path.is_dir():
        for file in _walk(path, frozenset({path.resolve()})):
            name = PurePosixPath(*file.relative_to(path).parts)
            yield name, file.read_bytes() if name.name == ANNOTATIONS else b""
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = PurePosixPath(info.filename)
                if not info.is_dir():
                    yield name, archive.read(info) if _is_read(name) else b""
    else:
        yield from _tar_entries(path)


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Every file below `folder`, links followed; `above` are the folders that contain it."""
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            yield entry
        elif (real := entry.resolve()) not in above:
            yield from _walk(entry, above | {real})
        else:
            raise UserError(f"{entry} is a link to a folder that contains the link. Remove it.")


def _tar_entries(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    with tarfile.open(path) as packed:
        for member in packed:
            name = PurePosixPath(member.name)
            if member.isdir():
                continue
            file = packed.extractfile(member) if _is_read(name) or member.issym() else None
            if file is None and member.issym():
                raise UserError(f"{path}: {name} is a link to a folder. Pack what it links to: tar --dereference.")
            yield name, b"" if file is None else file.read()


def _is_side_file(name: PurePosixPath) -> bool:
    """Whether a file is hidden, or one of macOS's metadata files in archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def _is_picture(name: PurePosixPath) -> bool:
    return name.suffix.lower() in PICTURES


def _is_read(name: PurePosixPath) -> bool:
    return (_is_picture(name) or name.name == ANNOTATIONS) and not _is_side_file(name)


def _annotations(held: Mapping[PurePosixPath, bytes]) -> dict[PurePosixPath, str]:
    """Image -> class, by Tiny-ImageNet's lists."""
    lines = {
        name.parent / "images": content.decode(errors="replace").splitlines()
        for name, content in held.items()
        if name.name == ANNOTATIONS
    }
    words = ((folder, line.split("\t")) for folder, listed in lines.items() for line in listed)
    return {folder / first: rest[0] for folder, (first, *rest) in words if rest}


# --- splits and classes -------------------------------------------------------------------------------------


def _lay_out(path: Path, pictures: Sequence[PurePosixPath], annotations: Mapping[PurePosixPath, str]) -> _Layout:
    depth = _depth(pictures)
    below = {name: name.parts[depth:] for name in pictures}
    splits = _has_splits(path, below.values())
    layout = _Layout()
    for name, (*folders, _) in below.items():
        split = SPLITS[folders.pop(0).casefold()] if splits and folders else "train"
        label = annotations.get(name) or (folders[0] if folders else "")
        if label and not (split != "train" and label == "images" and name not in annotations):
            layout.placed[split].append((name, label))
        else:
            (layout.loose if split == "train" else layout.unlabelled).append(name)
    return layout


def _depth(pictures: Collection[PurePosixPath]) -> int:
    """Number of nested top folders that contain all images, and so are neither splits nor classes."""
    depth = 0
    while len({name.parts[depth] for name in pictures}) == 1 and any(len(name.parts) > depth + 2 for name in pictures):
        depth += 1
    return depth


def _has_splits(path: Path, below: Iterable[Sequence[str]]) -> bool:
    """Whether the top folders are splits, not classes.

    Raises:
        UserError: the folders are ambiguous, or there are no training images.
    """
    paths = [parts for parts in below if len(parts) > 1]
    tops = {parts[0] for parts in paths}
    splits = sorted(top for top in tops if top.casefold() in SPLITS)
    others = sorted(tops.difference(splits))
    training = any(SPLITS[top.casefold()] == "train" for top in splits)
    if splits and not others and not training:
        raise UserError(f"{path} has images in {', '.join(splits)} and no training images: expected train/CLASS too.")
    if training and others and any(len(parts) > 2 for parts in paths if parts[0] in splits):
        raise UserError(
            f"{path} has {', '.join(f'{top}/' for top in splits)} with folders in it, and beside it "
            f"{', '.join(others[:3])}. Is {splits[0]} a split or a class? Move the others away, or rename the class."
        )
    return training and not others


def _left_out(held: Mapping[PurePosixPath, bytes], layout: _Layout) -> tuple[str, ...]:
    """A line on each kind of file that is not used."""
    no_pictures = Counter(
        name.suffix.lower() or name.name for name in held if not _is_picture(name) and name.name != ANNOTATIONS
    )
    lines = []
    if layout.unlabelled:
        lines.append(f"left out, images without labels: {len(layout.unlabelled):,}, e.g. {layout.unlabelled[0]}")
    if layout.loose:
        lines.append(f"left out, images in no class folder: {len(layout.loose):,}, e.g. {layout.loose[0]}")
    if no_pictures:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in no_pictures.most_common(5))
        lines.append(f"left out, files of other formats than {' '.join(PICTURES)}: {counts}")
    return tuple(lines)


# --- pictures -----------------------------------------------------------------------------------------------


def _decode(content: bytes, source: str, size: int | None) -> Bytes:
    """(H, W) gray or (H, W, 3) BGR."""
    image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_ANYCOLOR) if content else None
    if image is None:
        raise UserError(f"{source} is damaged, or not an image of a known format.")
    pixels = image.astype(np.uint8, copy=False)
    return pixels if size is None else _resize(pixels, size)


def _resize(image: Bytes, size: int) -> Bytes:
    """(H, W) or (H, W, C) -> (size, size) or (size, size, C)."""
    if image.shape[:2] == (size, size):
        return image
    shrinks = max(image.shape[:2]) > size
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)


def resized(images: Images, size: int) -> Images:
    """The images at another height and width."""
    pixels = images.pixels.permute(0, 2, 3, 1).numpy()
    channels = pixels.shape[3]
    made = np.stack([_resize(np.ascontiguousarray(image), size).reshape(size, size, channels) for image in pixels])
    return Images(torch.from_numpy(made).permute(0, 3, 1, 2).contiguous(), images.labels)


def _decode_file(path: Path, size: int | None) -> Bytes:
    return _decode(_content(path), str(path), size)


def _content(path: Path) -> bytes:
    with naming(path):
        return path.read_bytes()


def _in_files(path: Path, layout: _Layout, first: Bytes, size: int | None, notes: tuple[str, ...]) -> Content:
    """The images as files, decoded when a batch needs them; size and channels of all are those of the first."""
    colour, (height, width) = first.ndim == 3, first.shape[:2]
    classes = _classes(path, {split: [label for _, label in images] for split, images in layout.placed.items()})

    def decode(file: Path) -> torch.Tensor:
        picture = _decode_file(file, size)
        if picture.shape[:2] != (height, width):
            raise UserError(f"{file} is of size {picture.shape[:2]}, others {(height, width)}: give --image-size N.")
        if picture.ndim == 3 and not colour:
            picture = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.uint8, copy=False)
        return torch.from_numpy(np.ascontiguousarray(_channels(picture, colour)))

    def images(split: str) -> FileImages | None:
        held = layout.placed[split]
        labels = torch.tensor([classes.index(label) for _, label in held], dtype=torch.int64)
        empty = torch.empty(0, 3 if colour else 1, height, width, dtype=torch.uint8)
        return FileImages(empty, labels, tuple(path / name for name, _ in held), decode) if held else None

    note = (
        "too large for the memory that --memory-gb allows: images stay in their files, and are decoded batch by batch"
    )
    train = images("train")
    assert train is not None
    return _divide(path, classes, train, images("val"), images("test"), (*notes, note))


def _classes(path: Path, labels: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """The classes of the training images.

    Raises:
        UserError: another split has other classes.
    """
    classes = tuple(sorted(set(labels["train"])))
    for split, held in labels.items():
        strange = sorted(set(held) - set(classes))
        if strange:
            raise UserError(
                f"{path} holds {split} images of {strange[0]!r}, a class without training images. Its classes: "
                f"{', '.join(classes[:10])}."
            )
    return classes


def _assemble(path: Path, decoded: Mapping[str, list[tuple[str, Bytes]]], notes: tuple[str, ...]) -> Content:
    pictures = [picture for split in decoded.values() for _, picture in split]
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise UserError(
            f"The images of {path} are of {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}: give --image-size N to "
            "resize them all to N x N."
        )
    classes = _classes(path, {split: [label for label, _ in held] for split, held in decoded.items()})
    colour = any(picture.ndim == 3 for picture in pictures)
    train, validation, test = (
        _stack(decoded[split], classes, colour) if decoded[split] else None for split in ("train", "val", "test")
    )
    assert train is not None
    return _divide(path, classes, train, validation, test, notes)


def _divide(
    path: Path,
    classes: tuple[str, ...],
    train: Images,
    validation: Images | None,
    test: Images | None,
    notes: tuple[str, ...],
) -> Content:
    """Choose the test images: those of the test split, those of the validation split, or a fifth of all."""
    if test is not None:
        return Content(train, test, classes, validation, notes)
    if validation is not None:
        return Content(train, validation, classes, None, (*notes, "no test images with labels: the test is on val"))
    return _divided(path, train, classes, notes)


def _divided(path: Path, images: Images, classes: tuple[str, ...], notes: tuple[str, ...]) -> Content:
    train, test = split_off(images.labels, TEST_SHARE, "test")
    if not len(test):
        raise UserError(
            f"{path} has no test images of its own, so a fifth of each class would become the test, and no class has "
            "3 images. Add images, or put those for the test into test/CLASS and the others into train/CLASS."
        )
    note = f"no test images with labels: the test is on {len(test):,} of the images, a fifth of each class"
    return Content(images.take(train), images.take(test), classes, None, (*notes, note))


def _stack(held: Sequence[tuple[str, Bytes]], classes: Sequence[str], colour: bool) -> Images:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[label] for label, _ in held])
    pixels = np.stack([_channels(picture, colour) for _, picture in held])
    return as_images(pixels, labels)


def _channels(picture: Bytes, colour: bool) -> Bytes:
    """(H, W) or (H, W, 3) BGR -> (1, H, W), or (3, H, W) RGB."""
    if not colour:
        return picture[None]
    if picture.ndim == 2:
        picture = picture[:, :, None].repeat(3, 2)
    rgb: Bytes = picture[:, :, ::-1].transpose(2, 0, 1)
    return rgb
