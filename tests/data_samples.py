"""Small data sets in the real formats, and a server that hands them out well or badly."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal

import numpy as np

from n2nfx.catalogue import ENTRIES, Archive, Entry, File

SHAPE = (3, 4, 5)


def pixels(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def cifar_bytes(images: np.ndarray, labels: np.ndarray, label_bytes: int = 1) -> bytes:
    """Records as the CIFAR page describes them; of two label bytes the first is the superclass."""
    record = np.zeros((len(images), label_bytes + images[0].size), np.uint8)
    record[:, 0] = 99
    record[:, label_bytes - 1] = labels
    record[:, label_bytes:] = images.reshape(len(images), -1)
    return record.tobytes()


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of bytes, as the MNIST page describes it."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def known(name: str, data: bytes) -> File:
    return File(name, len(data), hashlib.sha256(data).hexdigest())


def tar_of(files: dict[str, bytes], folder: str = "cifar-10-batches-bin") -> bytes:
    """A tar.gz with the files in a folder, and a file that nobody asked for."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in {"readme.html": b"hello", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed(out.getvalue())


def packed(data: bytes) -> bytes:
    """By gzip, without the time of day."""
    return gzip.compress(data, mtime=0)


@dataclass
class Set:
    """A small data set: how the catalogue knows it, its files, and its archives' bytes."""

    entry: Entry
    files: dict[str, bytes]
    archives: dict[str, bytes] = field(default_factory=dict)

    def put(self, root: Path) -> Path:
        """Write the files where they are looked for."""
        folder = root / self.entry.folder
        folder.mkdir(parents=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder

    def at(self, *homes: str) -> "Set":
        """The same, its archives at those addresses."""
        archives = tuple(
            Archive(name, *_size_and_sum(data), tuple(f"{home}/{name}" for home in homes))
            for name, data in self.archives.items()
        )
        return replace(self, entry=replace(self.entry, archives=archives))


def _size_and_sum(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


def cifar_set(train: int = 40, test: int = 20) -> Set:
    """CIFAR-10 with few and small images: two training files and one for testing."""
    images = pixels(train + test)
    labels = np.arange(train + test) % 10
    half = train // 2
    files = {
        "data_batch_1.bin": cifar_bytes(images[:half], labels[:half]),
        "data_batch_2.bin": cifar_bytes(images[half:train], labels[half:train]),
        "test_batch.bin": cifar_bytes(images[train:], labels[train:]),
    }
    first, second, last = (known(name, data) for name, data in files.items())
    entry = replace(
        ENTRIES["cifar10"], shape=SHAPE, images=(train, test), train=(first, second), test=(last,)
    )
    return Set(entry, files, {"cifar-10-binary.tar.gz": tar_of(files)})


def fashion_set(train: int = 30, test: int = 10) -> Set:
    """Fashion-MNIST with few images, each file an archive of its own."""
    images = pixels(train + test, (1, 6, 6))[:, 0]
    labels = np.arange(train + test) % 10
    arrays = (images[:train], labels[:train], images[train:], labels[train:])
    entry = ENTRIES["fashion-mnist"]
    files = {file.name: idx_bytes(array) for file, array in zip(entry.files, arrays, strict=True)}
    all_known = tuple(known(name, data) for name, data in files.items())
    entry = replace(
        entry, shape=(1, 6, 6), images=(train, test), train=all_known[:2], test=all_known[2:],
        elsewhere=(),
    )  # fmt: skip
    return Set(entry, files, {f"{name}.gz": packed(data) for name, data in files.items()})


# --- the server --------------------------------------------------------------------------------


@dataclass
class Server:
    """Where files can be had: what was asked for, and how each answer goes.

    `cut` are, for the answers to come, the number of bytes after which the connection ends
    (None: not at all). `ranges` is whether it knows them: "misread" ones are sent from the start
    and said to be. `lengths` is whether it says how much comes.
    """

    address: str
    files: dict[str, bytes]
    cut: list[int | None] = field(default_factory=list)
    ranges: Literal["yes", "no", "misread"] = "yes"
    lengths: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    """A web server on this machine while the body runs."""
    state = Server("", files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(state: Server) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/"), self.headers.get("Range", "")
            state.asked.append((name, wanted))
            if name not in state.files:
                self.send_error(404)
                return
            self._send(state.files[name], wanted)

        def _send(self, data: bytes, wanted: str) -> None:
            part = bool(wanted) and state.ranges != "no"
            start = int(wanted[len("bytes=") : -1]) if part and state.ranges == "yes" else 0
            self.send_response(206 if part else 200)
            if part:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            if state.lengths:
                self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            end = state.cut.pop(0) if state.cut else None
            self.wfile.write(data[start:] if end is None else data[start : start + end])

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
