"""The formats are read as they are defined, and a damaged file is told, whatever its damage."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_samples import SHAPE, cifar_bytes, idx_bytes, pixels

from n2nfx.errors import DamagedFile
from n2nfx.training import formats


def written(folder: Path, data: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifar_records_are_labels_and_channels(tmp_path: Path, label_bytes: int) -> None:
    images, labels = pixels(7), np.array([0, 9, 3, 3, 1, 5, 8])
    path = written(tmp_path, cifar_bytes(images, labels, label_bytes))
    read, named = formats.cifar(path, classes=10, shape=SHAPE, label_bytes=label_bytes)
    assert read.dtype == np.uint8
    assert named.dtype == np.int64
    np.testing.assert_array_equal(read, images)
    np.testing.assert_array_equal(named, labels)


def test_the_published_first_bytes_of_a_cifar_record_are_red_then_green_then_blue(
    tmp_path: Path,
) -> None:
    """A record of the real size, written by hand."""
    record = bytes([6]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([3]) * 1024
    read, named = formats.cifar(written(tmp_path, record), classes=10)
    assert read.shape == (1, 3, 32, 32)
    assert named.tolist() == [6]
    assert [set(read[0, channel].ravel().tolist()) for channel in range(3)] == [{1}, {2}, {3}]


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_plain_and_packed(tmp_path: Path, packed: bool) -> None:
    images, labels = pixels(5, (1, 4, 3)), np.array([4, 0, 2, 2, 9])
    pack: Callable[[bytes], bytes] = gzip.compress if packed else bytes
    ending = ".gz" if packed else ""
    of_images = written(tmp_path, pack(idx_bytes(images[:, 0])), f"images{ending}")
    of_labels = written(tmp_path, pack(idx_bytes(labels)), f"labels{ending}")
    np.testing.assert_array_equal(formats.idx_images(of_images), images)
    np.testing.assert_array_equal(formats.idx_labels(of_labels, classes=10), labels)


IMAGES = idx_bytes(pixels(3, (1, 4, 3))[:, 0])
LABELS = idx_bytes(np.array([0, 1, 2]))
RECORDS = cifar_bytes(pixels(3), np.array([0, 1, 2]))
READERS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "idx-images": (IMAGES, formats.idx_images),
    "idx-labels": (LABELS, lambda path: formats.idx_labels(path, classes=10)),
    "cifar": (
        RECORDS,
        lambda path: formats.cifar(path, classes=10, shape=SHAPE, size=len(RECORDS)),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_cut_at_any_byte_or_too_long_is_damaged_and_named(tmp_path: Path, name: str) -> None:
    data, read = READERS[name]
    read(written(tmp_path, data))
    for end in range(len(data)):
        with pytest.raises(DamagedFile, match=str(tmp_path / "file")):
            read(written(tmp_path, data[:end]))
    with pytest.raises(DamagedFile, match=f"{len(data) + 1:,} bytes"):
        read(written(tmp_path, data + b"\0"))


def test_a_packed_file_cut_at_any_byte_or_changed_is_damaged(tmp_path: Path) -> None:
    data = gzip.compress(IMAGES, mtime=0)
    for end in range(len(data)):
        with pytest.raises(DamagedFile):
            formats.idx_images(written(tmp_path, data[:end], "images.gz"))
    turned = data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]  # its check sum
    with pytest.raises(DamagedFile, match="cannot be read"):
        formats.idx_images(written(tmp_path, turned, "images.gz"))


def test_a_record_size_that_does_not_divide_the_file_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, bytes(100))
    with pytest.raises(DamagedFile, match="100 bytes, which is no whole number of records of 61"):
        formats.cifar(path, classes=10, shape=SHAPE)
    with pytest.raises(DamagedFile, match="0 bytes, which is no whole number"):
        formats.cifar(written(tmp_path, b""), classes=10, shape=SHAPE)


@pytest.mark.parametrize(
    ("start", "told"),
    [(b"\x00\x00\x08\x01", "starts with 00000801"), (b"\x1f\x8b\x08\x00", "starts with 1f8b0800")],
)
def test_a_wrong_magic_is_told_with_the_right_one(tmp_path: Path, start: bytes, told: str) -> None:
    path = written(tmp_path, start + IMAGES[4:])
    with pytest.raises(DamagedFile, match=f"{told}.*3 dimensions starts with 00000803"):
        formats.idx_images(path)


def test_a_header_that_says_more_than_memory_holds_is_only_a_damaged_file(tmp_path: Path) -> None:
    path = written(tmp_path, IMAGES[:4] + b"\xff" * 12 + IMAGES[16:])
    with pytest.raises(DamagedFile, match="4294967295x4294967295x4294967295"):
        formats.idx_images(path)


def test_a_label_outside_the_classes_is_told_with_its_image(tmp_path: Path) -> None:
    labels = np.array([0, 1, 12, 3])
    path = written(tmp_path, cifar_bytes(pixels(4), labels))
    with pytest.raises(DamagedFile, match=r"image 2 has the label 12.*10 classes \(0 to 9\)"):
        formats.cifar(path, classes=10, shape=SHAPE)
    path = written(tmp_path, idx_bytes(labels))
    with pytest.raises(DamagedFile, match="image 2 has the label 12"):
        formats.idx_labels(path, classes=10)
    with pytest.raises(DamagedFile, match="image 2 has the label 12"):
        formats.idx_labels(path, classes=12)
    formats.idx_labels(path, classes=13)


def test_a_file_that_is_not_there_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match="is not there"):
        formats.contents(tmp_path / "nothing")
    with pytest.raises(DamagedFile, match="cannot be read"):
        formats.contents(tmp_path)
