"""Images in memory: the small data sets, as bytes, and batches of them on the training device."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from n2nfx.errors import UsageError
from n2nfx.training.augment import Augmentation


@dataclass(frozen=True, eq=False)
class Images:
    """Images (uint8, N x C x H x W) with their labels (int64, N), in memory or on a device."""

    pixels: Tensor
    labels: Tensor
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise UsageError(
                f"images must be uint8 of shape (N, channels, height, width), "
                f"not {self.pixels.dtype} of shape {tuple(self.pixels.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise UsageError(
                f"{len(self.pixels)} images need as many labels of int64, "
                f"not {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> "Images":
        """The same images on a device, where their batches are then made."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def subset(self, indices: np.ndarray) -> "Images":
        """The images of those indices, in that order."""
        chosen = torch.from_numpy(indices).to(self.labels.device)
        return replace(self, pixels=self.pixels[chosen], labels=self.labels[chosen])

    def fitted(self, shape: tuple[int, int, int]) -> "Images":
        """The images padded evenly with black to a larger height and width.

        Raises UsageError for other channels and for a smaller size.
        """
        channels, height, width = shape
        below, beside = height - self.shape[1], width - self.shape[2]
        if channels != self.shape[0] or below < 0 or beside < 0:
            raise UsageError("images are only ever padded: the channels stay, and none is cut")
        sides = (beside // 2, beside - beside // 2, below // 2, below - below // 2)
        return replace(self, pixels=functional.pad(self.pixels, sides))

    def batches(
        self, chosen: Iterable[np.ndarray], drawn: np.ndarray | None, workers: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each row of indices their images (uint8) and labels, where this lies.

        `drawn` are 64 random bits for every image, and None leaves the images as they are. No
        worker is needed, whatever number is given.
        """
        for indices in chosen:
            here = torch.from_numpy(indices).to(self.labels.device)
            pixels = self.pixels[here]
            if drawn is not None:
                pixels = self.augmentation(pixels, drawn[indices])
            yield pixels, self.labels[here]

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of every channel, of pixels from 0 to 1, counted exactly."""
        histograms = [_histogram(self.pixels[:, channel]) for channel in range(self.shape[0])]
        means, deviations = zip(*map(_moments, histograms), strict=True)
        return means, deviations


def _moments(counts: Sequence[int]) -> tuple[float, float]:
    """Mean and deviation in integers to the last step, so that 0 is exactly what never changes."""
    total = sum(counts)
    first = sum(value * count for value, count in enumerate(counts))
    second = sum(value * value * count for value, count in enumerate(counts))
    return first / (255 * total), sqrt(total * second - first * first) / (255 * total)


def _histogram(pixels: Tensor) -> list[int]:
    """How often each of the 256 values is there."""
    parts = (part.cpu().numpy().ravel() for part in pixels.split(4096))
    counts = sum((np.bincount(part, minlength=256) for part in parts), np.zeros(256, np.int64))
    return counts.tolist()
