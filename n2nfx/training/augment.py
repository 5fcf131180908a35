"""Random crops and flips of whole batches, drawn by (seed, epoch, index) and nothing else.

So an image of an epoch has one form, whatever batch it is in, in which order they come, on which
device and by how many workers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from n2nfx.errors import UsageError
from n2nfx.seeds import derive

_BITS = 20  # of each place drawn: no place is likelier than another by more than 1 in 10^4
_LOW = np.uint64((1 << _BITS) - 1)
_MOST = 50


@dataclass(frozen=True)
class Augmentation:
    """A crop at a random place of the image padded with black by `padding`, and a random flip.

    The default is the one of the CIFAR literature: 4 pixels at every side, flipped left to right
    half of the time.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.padding <= _MOST:
            raise UsageError(f"padding is {self.padding}, and must be 0 to {_MOST} pixels")

    def __call__(self, images: Tensor, drawn: np.ndarray) -> Tensor:
        """The images (uint8, N x C x H x W), each in the form that its 64 random bits say."""
        device, (channels, height, width) = images.device, images.shape[1:]
        top, left, flipped = (
            torch.from_numpy(each).to(device)[:, None] for each in self._form(drawn)
        )
        across = torch.arange(width, device=device)
        rows = top + torch.arange(height, device=device)
        columns = left + torch.where(flipped, across.flip(0), across)
        padded = functional.pad(images, (self.padding,) * 4)
        area, line = padded.shape[2] * padded.shape[3], padded.shape[3]
        planes = area * torch.arange(channels, device=device)
        pixels = planes[:, None, None] + (line * rows)[:, None, :, None] + columns[:, None, None]
        return padded.flatten(1).gather(1, pixels.flatten(1)).view_as(images)

    def _form(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Top and left of each crop, and whether it is flipped."""
        places = np.uint64(2 * self.padding + 1)
        top = ((drawn & _LOW) * places) >> np.uint64(_BITS)
        left = ((drawn >> np.uint64(_BITS) & _LOW) * places) >> np.uint64(_BITS)
        flipped = (drawn >> np.uint64(63)).astype(bool) & self.flip
        return top.astype(np.int64), left.astype(np.int64), flipped


def draws(seed: int, purpose: str, epoch: int, count: int) -> np.ndarray:
    """64 random bits (uint64) for each of `count` indices; a longer row begins with a shorter one.

    They are the generator's raw numbers, which numpy promises never to change.
    """
    return np.random.Philox(key=derive(seed, purpose, str(epoch))).random_raw(count)


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order (a permutation of range(count), int64) of an epoch's images."""
    return draws(seed, "order", epoch, count).argsort(kind="stable")
