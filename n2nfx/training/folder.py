"""An image folder, such as ImageNet's: a folder for each class, read image by image by workers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import exp, log, sqrt
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from n2nfx.errors import CannotOperate, DamagedFile, UsageError

ENDINGS = (".jpeg", ".jpg", ".png")

_AREA = (0.08, 1.0)  # of the image, and
_RATIO = (3 / 4, 4 / 3)  # width to height, of a random crop: Szegedy et al. 2015
_BORDER = 256 / 224  # without a random crop the middle is taken, of an image so much larger
_UNIT = 2.0**-64
_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # the longest first


@dataclass(frozen=True, eq=False)
class Folder:
    """Images in files, with their labels (int64, N): opened when a batch needs them, by workers.

    Each is brought to `size` x `size` in RGB: in training a random part of it (8% to all of its
    area, sides 3:4 to 4:3), flipped half of the time; else its middle.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    size: int = 224

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as it is handed out."""
        return 3, self.size, self.size

    def subset(self, indices: np.ndarray) -> "Folder":
        """The images of those indices, in that order."""
        chosen = tuple(self.paths[index] for index in indices)
        return replace(self, paths=chosen, labels=self.labels[torch.from_numpy(indices)])

    def fitted(self, shape: tuple[int, int, int]) -> "Folder":
        """The images brought to another size; raises UsageError where that is no RGB square."""
        channels, height, width = shape
        if channels != 3 or height != width:
            raise UsageError("images of a folder are RGB and square")
        return replace(self, size=height)

    def batches(
        self, chosen: Iterable[np.ndarray], drawn: np.ndarray | None, workers: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each row of indices their images (uint8) and labels, on the CPU.

        `drawn` are 64 random bits for every image, and None takes the middle of each. Raises
        DamagedFile for a file that is no image. The number of `workers` changes nothing but the
        speed.
        """
        rows = [indices.tolist() for indices in chosen]
        loader = DataLoader(
            _Reader(self, drawn),
            batch_sampler=rows,
            num_workers=workers,
            collate_fn=_stack,
            generator=torch.Generator(),  # else it draws from the caller's
        )
        for pixels, labels in loader:
            yield _checked(pixels), labels


@dataclass(frozen=True, eq=False)
class _Reader(Dataset[tuple[Tensor | str, int]]):
    """What a worker does: one image and its label, or why there is none."""

    folder: Folder
    drawn: np.ndarray | None

    def __getitem__(self, index: int) -> tuple[Tensor | str, int]:
        folder = self.folder
        bits = None if self.drawn is None else int(self.drawn[index])
        try:
            pixels: Tensor | str = read(folder.paths[index], folder.size, bits)
        except DamagedFile as error:
            pixels = str(error)  # an error of ours would come out of a worker as a traceback
        return pixels, int(folder.labels[index])


def find(root: Path) -> tuple[tuple[str, ...], Folder]:
    """The classes of an image folder, sorted by name, and its images.

    The first image of every class comes first, then the second of every class, and so on: so the
    first ones of a set are of many classes. Raises CannotOperate where there is none.
    """
    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
    files = [_images(root / name) for name in classes]
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if not classes or empty:
        what = f"{root / empty[0]} has no image" if empty else f"{root} has no folder for a class"
        raise CannotOperate(f"{what}; images are files that end in {', '.join(ENDINGS)}")
    pairs = [
        (path, label)
        for row in zip_longest(*files)
        for label, path in enumerate(row)
        if path is not None
    ]
    labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
    return classes, Folder(tuple(path for path, _ in pairs), labels)


def damages(images: Folder) -> Iterator[str]:
    """What is wrong with any file, by its first bytes only: a whole set takes hours to decode."""
    for path in images.paths:
        with path.open("rb") as file:
            start = file.read(len(_STARTS[0]))
        if not start.startswith(_STARTS):
            yield f"{path}: {'is neither JPEG nor PNG' if start else 'is empty'}"


def read(path: Path, size: int, bits: int | None) -> Tensor:
    """One image (uint8, 3 x size x size): the part that 64 random bits say, or the middle.

    Raises DamagedFile where it cannot be read to its end.
    """
    try:
        with Image.open(path) as image:
            box, flipped = _middle(image.size), False
            if bits is not None:
                box, flipped = _part(image.size, bits)
            rgb = image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedFile(f"{path}: cannot be read as an image: {error}") from error
    small = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
    pixels = torch.from_numpy(np.asarray(small).transpose(2, 0, 1).copy())
    return pixels.flip(-1) if flipped else pixels


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _middle(size: tuple[int, int]) -> Box:
    """The square in the middle of an image, a little smaller than its shorter side."""
    width, height = size
    side = min(size) / _BORDER
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _part(size: tuple[int, int], bits: int) -> tuple[Box, bool]:
    """A random part of an image, and whether it is flipped.

    A part that would be wider or higher than the image is cut at its border, where torchvision
    draws again.
    """
    width, height = size
    raw = np.random.Philox(key=bits).random_raw(5)
    area, ratio, across, down, flip = (float(number) * _UNIT for number in raw)
    pixels = width * height * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
    shape = exp(log(_RATIO[0]) + ratio * (log(_RATIO[1]) - log(_RATIO[0])))
    wide, high = min(sqrt(pixels * shape), width), min(sqrt(pixels / shape), height)
    left, top = across * (width - wide), down * (height - high)
    return (left, top, min(left + wide, width), min(top + high, height)), flip < 0.5


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)


def _stack(read: list[tuple[Tensor | str, int]]) -> tuple[Tensor | str, Tensor]:
    """A batch, or the first thing that was wrong."""
    labels = torch.tensor([label for _, label in read], dtype=torch.int64)
    wrong = [pixels for pixels, _ in read if isinstance(pixels, str)]
    if wrong:
        return wrong[0], labels
    return torch.stack([pixels for pixels, _ in read if isinstance(pixels, Tensor)]), labels


def _checked(pixels: Tensor | str) -> Tensor:
    if isinstance(pixels, str):
        raise DamagedFile(pixels)
    return pixels
