"""Every reader on small files in the official format, which the tests write by its description."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import savemat

from kfrl.errors import UserError
from kfrl.nets.images.registry import make_net
from kfrl.supervised.data import sets as data
from kfrl.supervised.data.download import File
from kfrl.supervised.data.readers import read_cifar, read_emnist, read_stl10, read_svhn
from kfrl.supervised.data.sets import CIFAR_100, SETS, Data, load_data

SHARED = Path(__file__).parents[5] / "shared" / "data"
Write = Callable[..., Path]


def random_bytes(*shape: int, below: int = 256) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, below, shape, dtype=np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return (
        b"\0\0\x08" + bytes([array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()
    )


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def picture(array: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    return bytes(cv2.imencode(suffix, array)[1])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- IDX, and the rules for files ---------------------------------------------------------------------------


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes an MNIST of 40 training and 10 test images, and lets the table expect one of 40 and 10 images.

    `official` makes its own checksums the official ones.
    """

    def write(labels_below: int = 10, train: int = 40, official: bool = True) -> Path:
        known, files = SETS["mnist"], []
        for part, count in (("train", train), ("t10k", 10)):
            arrays = {
                "images-idx3": random_bytes(count, 28, 28),
                "labels-idx1": np.arange(count, dtype=np.uint8) % labels_below,
            }
            for kind, array in arrays.items():
                path = tmp_path / "mnist" / f"{part}-{kind}-ubyte.gz"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(gzip.compress(idx(array), mtime=0))
                files.append(path)
        checksums = []
        for path, file in zip(files, known.files, strict=True):
            assert path.name == file.name
            checksums.append(_md5(path) if official else file.checksum)
        named = tuple(replace(file, checksum=sum_) for file, sum_ in zip(known.files, checksums, strict=True))
        monkeypatch.setitem(SETS, "mnist", replace(known, files=named, counts=(40, 10)))
        return tmp_path

    return write


def _md5(path: Path) -> str:
    import hashlib

    return f"md5:{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}"


def test_idx_files_become_images_and_labels(mnist: Write) -> None:
    loaded = load_data("mnist", mnist())
    assert loaded.notes == ()
    assert torch.equal(loaded.train.pixels[:, 0], torch.tensor(random_bytes(40, 28, 28)))
    assert loaded.train.labels.tolist() == [*range(10)] * 4
    assert len(loaded.test) == 10


def test_a_whole_file_with_another_checksum_is_used_and_noted(mnist: Write) -> None:
    loaded = load_data("mnist", mnist(official=False))
    assert len(loaded.train) == 40
    (note,) = loaded.notes
    assert "not the official files" in note and "t10k-labels-idx1-ubyte.gz" in note


def test_unpacked_files_are_found_and_noted(mnist: Write) -> None:
    root = mnist()
    for path in list((root / "mnist").iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    loaded = load_data("mnist", root)
    assert torch.equal(loaded.train.pixels[:, 0], torch.tensor(random_bytes(40, 28, 28)))
    assert "t10k-labels-idx1-ubyte in" in loaded.notes[0] and "but complete" in loaded.notes[0]


@pytest.mark.parametrize("part", ["train-images-idx3", "t10k-labels-idx1"])
@pytest.mark.parametrize("official", [True, False])
def test_a_truncated_file_is_named_and_never_used(mnist: Write, part: str, official: bool) -> None:
    path = mnist(official=official) / "mnist" / f"{part}-ubyte.gz"
    truncate(path)
    with pytest.raises(UserError, match=rf"{part}-ubyte\.gz is damaged or only half downloaded, and was not used"):
        load_data("mnist", path.parents[1])


def test_a_flipped_byte_is_noticed(mnist: Write) -> None:
    path = mnist(official=False) / "mnist" / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        load_data("mnist", path.parents[1])


def test_a_header_that_promises_more_is_noticed(mnist: Write) -> None:
    path = mnist(official=False) / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(random_bytes(40, 28, 28))[:-1]))
    with pytest.raises(UserError, match="its header says 40 x 28 x 28 bytes, it holds 31,359"):
        load_data("mnist", path.parents[1])


def test_a_file_with_too_few_images_is_not_used(mnist: Write) -> None:
    with pytest.raises(UserError, match=r"expected 40 images .* found 39"):
        load_data("mnist", mnist(train=39, official=False))


def test_labels_outside_the_classes_are_named(mnist: Write) -> None:
    with pytest.raises(UserError, match=r"labels are outside its 10 classes, e\.g\. 10"):
        load_data("mnist", mnist(labels_below=12, official=False))


def test_a_missing_file_is_downloaded_from_its_address_and_checked(
    mnist: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    path = mnist() / "mnist" / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    path.unlink()
    asked = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path, **options: object) -> None:
        asked.append((url, known_hash))
        (path / fname).write_bytes(content)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(load_data("mnist", path.parents[1]).test) == 10
    assert asked == [(SETS["mnist"].files[3].url, SETS["mnist"].files[3].checksum)]


def test_a_file_that_cannot_be_downloaded_says_where_to_put_it(mnist: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    def retrieve(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    path = mnist() / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(UserError, match=r"could not be downloaded from http.*no network.*--data-dir"):
        load_data("mnist", path.parents[1])


def test_without_a_network_every_missing_file_is_named_in_a_few_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch
    import requests

    def retrieve(*arguments: object, **options: object) -> None:
        raise requests.ConnectionError("HTTPSConnectionPool(host=...): Max retries exceeded")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(UserError, match=r": ufldl\.stanford\.edu cannot be reached from here") as caught:
        load_data("svhn", tmp_path)
    assert "Copy train_32x32.mat, test_32x32.mat there" in str(caught.value)
    assert "Pool" not in str(caught.value)


def test_every_file_of_the_table_has_an_address_that_ends_in_its_name_and_an_md5() -> None:
    files: list[File] = [file for known in SETS.values() for file in known.files]
    assert len(files) > 15
    for file in files:
        assert file.url.endswith(f"/{file.name}")
        algorithm, _, digest = file.checksum.partition(":")
        assert (algorithm, len(digest)) == ("md5", 32)


@pytest.mark.parametrize("name", SETS)
def test_the_usual_net_of_a_set_takes_its_images(name: str) -> None:
    known = SETS[name]
    with torch.device("meta"):
        net = make_net(known.net, known.shape, known.num_classes)
        assert net(torch.empty(2, *known.shape)).shape == (2, known.num_classes)


# --- parts of a set -----------------------------------------------------------------------------------------


def test_a_class_is_left_out_of_the_training_images_alone() -> None:
    whole, without = load_data("digits"), load_data("digits-no-3")
    assert (whole.train.labels == 3).any()
    assert not (without.train.labels == 3).any()
    assert len(without.train) == len(whole.train) - int((whole.train.labels == 3).sum())
    assert without.classes == whole.classes
    assert torch.equal(without.test.labels, whole.test.labels)


def test_half_of_the_classes() -> None:
    half = load_data("digits-half")
    assert half.classes == tuple("01234")
    assert set(half.train.labels.tolist()) == set(half.test.labels.tolist()) == set(range(5))
    other = load_data("digits-other-half")
    assert other.classes == tuple("56789")
    assert set(other.train.labels.tolist()) == set(other.test.labels.tolist()) == set(range(5))
    assert len(half.train) + len(other.train) == len(load_data("digits").train)
    both = load_data("digits-half-no-2")
    assert (both.name, len(both.classes)) == ("digits-half-no-2", 5)
    assert set(both.train.labels.tolist()) == {0, 1, 3, 4}


# --- the other formats --------------------------------------------------------------------------------------


def test_emnist_is_turned_upright_and_letters_begin_at_0(tmp_path: Path) -> None:
    images = random_bytes(3, 28, 28)
    path = tmp_path / "gzip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("train", "test"):
            for kind, array in (("images-idx3", images), ("labels-idx1", np.array([1, 26, 2], dtype=np.uint8))):
                archive.writestr(f"gzip/emnist-letters-{split}-{kind}-ubyte.gz", gzip.compress(idx(array)))
                archive.writestr(f"gzip/emnist-balanced-{split}-{kind}-ubyte.gz", b"not read")
        archive.writestr("gzip/emnist-letters-mapping.txt", b"1 65 97\n")
    train, test = read_emnist(path, "letters", 1)
    assert train.labels.tolist() == test.labels.tolist() == [0, 25, 1]
    assert int(train.pixels[2, 0, 5, 7]) == images[2, 7, 5]
    truncate(path)
    with pytest.raises(UserError, match=r"gzip\.zip is damaged"):
        read_emnist(path, "letters", 1)


def test_cifar_takes_the_last_label_byte(tmp_path: Path) -> None:
    pixels = random_bytes(4, 3, 32, 32)
    coarse, fine = np.array([1, 2, 3, 4], dtype=np.uint8), np.array([9, 8, 7, 6], dtype=np.uint8)
    records = np.concatenate([coarse[:, None], fine[:, None], pixels.reshape(4, -1)], axis=1)
    files = {"a/one.bin": records[:2].tobytes(), "a/two.bin": records[2:3].tobytes(), "a/t.bin": records[3:].tobytes()}
    files = {"a/batches.meta.txt": b"airplane\n", "a/readme.html": b"<html>", **files}
    path = tar(tmp_path / "cifar.tar.gz", files)
    train, test = read_cifar(path, ("a/one.bin", "a/two.bin"), "a/t.bin", 2)
    assert (train.labels.tolist(), test.labels.tolist()) == ([9, 8, 7], [6])
    assert torch.equal(train.pixels, torch.tensor(pixels[:3]))
    with pytest.raises(UserError, match=r"cifar.tar.gz .*no a/three.bin in it"):
        read_cifar(path, ("a/three.bin",), "a/t.bin", 2)
    truncate(path)
    with pytest.raises(UserError, match="is damaged"):
        read_cifar(path, ("a/one.bin",), "a/t.bin", 2)


def test_svhn_has_images_last_and_calls_the_digit_0_ten(tmp_path: Path) -> None:
    pixels = random_bytes(32, 32, 3, 2)
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": pixels, "y": np.array([[10], [4]], dtype=np.uint8)}, do_compression=True)
    images = read_svhn(path)
    assert images.labels.tolist() == [0, 4]
    assert int(images.pixels[1, 2, 5, 7]) == pixels[5, 7, 2, 1]
    truncate(path)
    with pytest.raises(UserError, match=r"train_32x32\.mat is damaged"):
        read_svhn(path)


def test_svhn_learns_from_its_extra_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "svhn").mkdir()
    for number, part in enumerate(("train", "test", "extra"), start=1):
        pixels = np.full((32, 32, 3, number), number, dtype=np.uint8)
        savemat(tmp_path / "svhn" / f"{part}_32x32.mat", {"X": pixels, "y": np.full((number, 1), number)})
    for name, labels in (("svhn", [1]), ("svhn-extra", [1, 3, 3, 3])):
        monkeypatch.setitem(SETS, name, replace(SETS[name], counts=(len(labels), 2)))
        loaded = load_data(name, tmp_path)
        assert loaded.train.labels.tolist() == loaded.train.pixels[:, 0, 0, 0].tolist() == labels
        assert loaded.test.labels.tolist() == [2, 2]


def test_svhn_extra_keeps_back_the_images_that_svhn_keeps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "svhn").mkdir()
    counts = {"train": 60, "test": 10, "extra": 200}
    for part, count in counts.items():
        content = {"X": random_bytes(32, 32, 3, count), "y": (np.arange(count) % 10 + 1)[:, None]}
        savemat(tmp_path / "svhn" / f"{part}_32x32.mat", content)
    for name, count in (("svhn", 60), ("svhn-extra", 260)):
        monkeypatch.setitem(SETS, name, replace(SETS[name], counts=(count, 10)))
    for part in ("", "-half", "-other-half"):
        plain, more = load_data(f"svhn{part}", tmp_path), load_data(f"svhn-extra{part}", tmp_path)
        for split, extra in zip(plain.split(0.2), more.split(0.2), strict=True):
            # The images of the plain set come first.
            assert split.tolist() == extra[extra < len(plain.train)].tolist()
        assert torch.bincount(more.train.labels[more.split(0.2)[1]]).tolist() == [5] * len(more.classes)


def test_svhn_of_matlab_7_3_says_so(tmp_path: Path) -> None:
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(116) + bytes(8) + b"\0\2IM"
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(header.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(512))
    with pytest.raises(UserError, match=r"train_32x32\.mat is a MATLAB 7\.3 file.*-v7"):
        read_svhn(path)


def test_stl_10_stands_column_by_column_and_begins_at_1(tmp_path: Path) -> None:
    pixels = random_bytes(2, 3, 96, 96)
    labels = bytes([10, 1])
    files = {f"stl10_binary/{split}_X.bin": pixels.tobytes() for split in ("train", "test")}
    files |= {f"stl10_binary/{split}_y.bin": labels for split in ("train", "test")}
    side = ("class_names.txt", "fold_indices.txt", "unlabeled_X.bin")
    files = {**{f"stl10_binary/{name}": b"not read" for name in side}, **files}
    train, _ = read_stl10(tar(tmp_path / "stl10_binary.tar.gz", files))
    assert train.labels.tolist() == [9, 0]
    assert int(train.pixels[1, 2, 5, 7]) == pixels[1, 2, 7, 5]


def test_names_of_classes() -> None:
    assert len(set(CIFAR_100)) == 100
    assert list(CIFAR_100) == sorted(CIFAR_100)
    assert load_data("digits").classes == tuple("0123456789")


# --- real files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no data in {SHARED}")
    return SHARED


def test_the_real_mnist(shared: Path) -> None:
    loaded: Data = load_data("mnist", shared)
    assert torch.bincount(loaded.train.labels)[:4].tolist() == [5923, 6742, 5958, 6131]
    assert data.SETS["mnist"].counts == (len(loaded.train), len(loaded.test))
    assert any("train-images" in note for note in loaded.notes)


def test_the_real_notmnist(shared: Path) -> None:
    loaded = load_data("notmnist", shared)
    assert torch.bincount(loaded.train.labels).tolist() == [800] * 10
    assert torch.bincount(loaded.test.labels).tolist() == [200] * 10
