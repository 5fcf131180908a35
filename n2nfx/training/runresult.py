"""What came out of a run, and reading it back: only what was written is believed."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from n2nfx.errors import DamagedFile

RESULT, MANIFEST = "result.json", "MANIFEST.sha256"


@dataclass(frozen=True)
class Result:
    """What came out of a run. Accuracies are on the test images, in percent.

    `final_loss` is the last epoch's mean training loss. A run that `diverged` has no final values,
    and `reason` says where it was. `nnz` are the kept weights, `skip_nnz` those of them in skips,
    of `size` prunable ones. `environments` is in how many different ones it was trained: only with
    one are its last bits those of an uninterrupted run.
    """

    name: str
    status: Literal["done", "diverged"]
    final_accuracy: float | None
    best_accuracy: float | None
    final_loss: float | None
    nnz: int
    skip_nnz: int
    size: int
    multiply_adds: int
    epochs: int
    seconds: float
    environments: int
    reason: str | None = None


def read(folder: Path) -> Result | None:
    """The result of the run in a folder; None where there is none yet.

    Raises DamagedFile where it is not what the run wrote, by the manifest beside it.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    text = contents(path)
    if not (folder / MANIFEST).exists():
        raise DamagedFile(
            f"{folder / MANIFEST}: is not there, so that nothing vouches for {RESULT}; restore it, "
            f"or delete {RESULT} to train again"
        )
    if manifest_line(RESULT, text).encode() not in _manifest(folder):
        raise DamagedFile(
            f"{path}: does not have the SHA-256 that {MANIFEST} gives: it changed; "
            "restore it, or delete it to train again"
        )
    try:
        return _adapter().validate_json(text, strict=True)
    except ValidationError as error:
        raise DamagedFile(f"{path}: is no result of a run; delete it to train again") from error


def _manifest(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError:
        return b""  # which vouches for nothing


def manifest_line(name: str, data: bytes) -> str:
    """A file's line in the manifest, as `sha256sum -c` reads it."""
    return f"{sha256(data)}  {name}\n"


def sha256(data: bytes) -> str:
    """The digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def contents(path: Path) -> bytes:
    """A file's bytes; raises DamagedFile where they cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path}: cannot be read: {error.strerror}") from error


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(Result)
