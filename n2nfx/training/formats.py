"""The file formats of the small data sets, read without pickle: CIFAR's records and IDX.

Whatever is wrong with a file is a `DamagedFile` that names it and says what was expected.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np

from n2nfx.errors import DamagedFile

_IDX_BYTES = 0x08  # the third byte of an IDX file: its elements are unsigned bytes


def contents(path: Path, size: int | None = None) -> bytes:
    """A file's bytes, unpacked where its name ends in .gz; there must be `size` of them."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except FileNotFoundError as error:
        raise DamagedFile(f"{path}: is not there") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFile(f"{path}: cannot be read: {error}; fetch it again") from error
    if size is not None and len(data) != size:
        raise DamagedFile(f"{path}: has {len(data):,} bytes of {size:,}; fetch it again")
    return data


def cifar(
    path: Path,
    *,
    classes: int,
    shape: tuple[int, int, int] = (3, 32, 32),
    label_bytes: int = 1,
    size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The images (uint8, N x C x H x W) and labels (int64, N) of one file of CIFAR's records.

    A record is `label_bytes` bytes, of which the last is the class (CIFAR-100 has the superclass
    before it), and the image, channel by channel. Source: the "binary version" of
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    data = contents(path, size)
    record = label_bytes + int(np.prod(shape))
    if not data or len(data) % record:
        raise DamagedFile(
            f"{path}: has {len(data):,} bytes, which is no whole number of records of {record:,}; "
            "fetch it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    labels = _labels(path, records[:, label_bytes - 1], classes)
    return records[:, label_bytes:].reshape(-1, *shape), labels


def idx_images(path: Path, size: int | None = None) -> np.ndarray:
    """The images (uint8, N x 1 x H x W) of an IDX file with three dimensions."""
    return _idx(path, 3, size)[:, None]


def idx_labels(path: Path, *, classes: int, size: int | None = None) -> np.ndarray:
    """The labels (int64, N) of an IDX file with one dimension."""
    return _labels(path, _idx(path, 1, size), classes)


def _idx(path: Path, dimensions: int, size: int | None) -> np.ndarray:
    """An IDX file: two zeros, the type, the number of dimensions, each big-endian; the elements."""
    data = contents(path, size)
    magic = bytes([0, 0, _IDX_BYTES, dimensions])
    header = len(magic) + 4 * dimensions
    if data[: len(magic)] != magic:
        raise DamagedFile(
            f"{path}: starts with {data[:4].hex() or 'nothing'}, and an IDX file of bytes with "
            f"{dimensions} dimension{'s' * (dimensions > 1)} starts with {magic.hex()}"
        )
    if len(data) < header:
        raise DamagedFile(f"{path}: ends within its header; fetch it again")
    shape = np.frombuffer(data, ">u4", dimensions, len(magic)).tolist()
    expected = header + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DamagedFile(
            f"{path}: has {len(data):,} bytes; its header says {'x'.join(map(str, shape))}, "
            f"which is {expected:,}; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _labels(path: Path, labels: np.ndarray, classes: int) -> np.ndarray:
    """The labels as int64; raises DamagedFile where one is outside of the classes."""
    outside = np.flatnonzero(labels >= classes)
    if outside.size:
        raise DamagedFile(
            f"{path}: image {outside[0]} has the label {labels[outside[0]]}, and there are "
            f"{classes} classes (0 to {classes - 1})"
        )
    return labels.astype(np.int64)
