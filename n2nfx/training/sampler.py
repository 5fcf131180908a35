"""Which training images every step shows to every rank."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from n2nfx.errors import UsageError
from n2nfx.runspec import Training
from n2nfx.training.augment import order

Step = list[np.ndarray]  # the indices of each micro-batch


@dataclass(frozen=True)
class Sampler:
    """The images of an epoch in steps of micro-batches, in the order of (seed, epoch).

    Every image comes once an epoch; the last step may be smaller. Ranks share each micro-batch, so
    that the batch size is the same on however many devices. Raises UsageError where a rank would
    get a share of one image or none: batch norms have no statistics of one.
    """

    images: int
    batch_size: int
    accumulate: int
    seed: int
    ranks: int = 1

    def __post_init__(self) -> None:
        last = self.images % self.batch_size or self.batch_size
        least = min(last, self.images)
        if least // self.ranks < 2:
            others = self.images - least
            fewer = self.batch_size // self.ranks >= 2 and others
            raise UsageError(
                f"{self.images:,} images in batches of {self.batch_size} leave a batch of {least} "
                f"for {self.ranks} device(s), and batch norms need 2 images on each: change "
                "batch_size" + (f", or train on {others:,} images (images=)" if fewer else "")
            )

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return ceil(self.images / (self.batch_size * self.accumulate))

    def epoch(self, number: int, start: int = 0) -> list[Step]:
        """The steps of an epoch from step `start` on, each with the micro-batches of all ranks."""
        rows = order(self.seed, number, self.images)
        micro = [rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)]
        steps = [micro[at : at + self.accumulate] for at in range(0, len(micro), self.accumulate)]
        return steps[start:]


def sampler_of(training: Training, available: int, seed: int, ranks: int) -> Sampler:
    """The sampler of a training, of so many images; raises UsageError where it asks for more."""
    if training.images > available:
        raise UsageError(f"images={training.images:,}, and there are {available:,} to train on")
    images = training.images or available
    return Sampler(images, training.batch_size, training.accumulate, seed, ranks)
