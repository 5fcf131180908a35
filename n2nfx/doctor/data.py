"""Which data sets are there, and the command that brings one that is not.

They are looked for in one folder, that of N2NFX_DATA or ~/.cache/n2nfx, laid out as torchvision
lays them out; and Fashion-MNIST also where Debian's package puts it. Only names are looked at.
"""

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from n2nfx.doctor.finding import Finding

DEBIAN = Path("/usr/share/datasets/fashion-mnist")

_MNIST = [
    f"{part}-{what}"
    for part in ("train", "t10k")
    for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
]


@dataclass(frozen=True)
class _Set:
    """A data set: the folders that may hold it, each with the names that it needs there."""

    name: str
    places: tuple[tuple[Path, tuple[str, ...]], ...]
    remedy: str


def find_data() -> Iterator[Finding]:
    """What was found of each data set."""
    own = os.environ.get("N2NFX_DATA")
    root = Path(own).expanduser() if own else Path.home() / ".cache" / "n2nfx"
    if own and not root.is_dir():
        told = f"N2NFX_DATA is {own}, which is no folder"
        yield Finding("data", "N2NFX_DATA", "warning", told, f"mkdir -p {shlex.quote(own)}")
    for one in _sets(root):
        yield _found(one)


def _sets(root: Path) -> tuple[_Set, ...]:
    raw = root / "FashionMNIST" / "raw"
    batches = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    packed = tuple(f"{name}.gz" for name in _MNIST)
    return (
        _Set(
            "fashion-mnist",
            ((DEBIAN, packed), (raw, tuple(_MNIST)), (raw, packed)),
            "apt install dataset-fashion-mnist",
        ),
        _Set("cifar10", ((root / "cifar-10-batches-py", batches),), _download("CIFAR10", root)),
        _Set(
            "cifar100", ((root / "cifar-100-python", ("train", "test")),),
            _download("CIFAR100", root),
        ),
        _Set(
            "imagenet", ((root / "imagenet", ("train", "val")),),
            f"ask for access at https://image-net.org; train/ and val/ go to {root / 'imagenet'}",
        ),
    )  # fmt: skip


def _download(name: str, root: Path) -> str:
    place = json.dumps(str(root))
    code = f"from torchvision.datasets import {name}; {name}({place}, download=True)"
    return shlex.join(["python", "-c", code])


def _found(one: _Set) -> Finding:
    """The first folder that has all of it; else the one that has most."""
    lacks = [
        (folder, [name for name in names if not (folder / name).exists()], len(names))
        for folder, names in one.places
    ]
    folder, missing, wanted = min(lacks, key=lambda place: len(place[1]))
    if not missing:
        return Finding("data", one.name, "ok", str(folder))
    if len(missing) < wanted:
        told = f"{folder} lacks {', '.join(missing)}"
        return Finding("data", one.name, "warning", told, one.remedy)
    places = " or ".join(dict.fromkeys(str(folder) for folder, _ in one.places))
    return Finding("data", one.name, "missing", f"not in {places}", one.remedy)
