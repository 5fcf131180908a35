"""A data set by its name, in the form that training and pruning ask for."""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from n2nfx import catalogue, ownfile
from n2nfx.errors import CannotOperate, DamagedFile, UsageError
from n2nfx.seeds import derive
from n2nfx.training import folder, formats
from n2nfx.training.augment import draws, order
from n2nfx.training.folder import Folder
from n2nfx.training.images import Images
from n2nfx.zoo import NETWORKS

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what everybody uses for it


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: images to train on and to test on, the classes' names, and how to normalize.

    `mean` and `std` are those of each channel of the training images, of pixels from 0 to 1.
    With `flat`, networks are given an image as a vector, once it is augmented and normalized.
    """

    name: str
    train: Images | Folder
    test: Images | Folder
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flat: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of an image, or their product."""
        return (prod(self.train.shape),) if self.flat else self.train.shape

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """The first training images as one batch: normalized (float32), and their labels.

        They are not augmented. Raises UsageError where there are not so many.
        """
        if not 1 <= count <= len(self.train):
            raise UsageError(
                f"a batch of {count} cannot be: {self.name} has {len(self.train):,} training images"
            )
        ((pixels, labels),) = self.train.batches([np.arange(count)], None)
        return self.normalized(pixels), labels

    def epoch(
        self,
        number: int,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 0,
        keep_last: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of training batches: shuffled, augmented, normalized, with their labels.

        Order and augmentation depend on the seed, the epoch's number and an image's index only.
        Small data sets are augmented where they lie (`to`); an image folder is read by `workers`.
        """
        images = self.train
        rows = _rows(order(seed, number, len(images)), batch_size, keep_last)
        drawn = draws(seed, "augment", number, len(images))
        for pixels, labels in images.batches(rows, drawn, workers):
            yield self.normalized(pixels), labels

    def testing(self, batch_size: int, *, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in their order, normalized, with their labels."""
        rows = _rows(np.arange(len(self.test)), batch_size, keep_last=True)
        for pixels, labels in self.test.batches(rows, None, workers):
            yield self.normalized(pixels), labels

    def normalized(self, pixels: Tensor) -> Tensor:
        """Bytes as float32 with mean 0 and deviation 1, on their device: (x / 255 - mean) / std."""
        mean, std = (
            255 * torch.tensor(numbers, dtype=torch.float64)[:, None, None]
            for numbers in (self.mean, self.std)
        )
        images = (
            pixels.float()
            .sub_(mean.to(pixels.device, torch.float32))
            .div_(std.to(pixels.device, torch.float32))
        )
        return images.flatten(1) if self.flat else images

    def to(self, device: torch.device | str) -> "Data":
        """The same with what is in memory on a device; what is read from files stays there."""
        train, test = (
            part.to(device) if isinstance(part, Images) else part
            for part in (self.train, self.test)
        )
        return replace(self, train=train, test=test)

    def held_out(self, count: int, seed: int = 0) -> "Data":
        """The same with `count` of the training images to test on, and the others to train on.

        Choices are made with these, so that the test images judge only once. Which they are
        depends on the seed alone; more are a superset of fewer. Normalization stays the same.
        """
        if not 0 < count < len(self.train):
            raise UsageError(
                f"cannot hold out {count} of {len(self.train):,} training images of {self.name}"
            )
        key = derive(seed, "held out")
        ranks = np.random.Philox(key=key).random_raw(len(self.train)).argsort(kind="stable")
        kept, held = np.sort(ranks[count:]), np.sort(ranks[:count])
        return replace(self, train=self.train.subset(kept), test=self.train.subset(held))

    def fitted(self, input_shape: tuple[int, ...] | None, num_classes: int | None) -> "Data":
        """The same for a network of that input and those classes: small images padded with black.

        None fits everything. Raises UsageError, with what to pass instead, where it cannot be.
        """
        wide = num_classes is None or num_classes >= len(self.classes)
        if not wide or not self._fits(input_shape):
            raise UsageError(self._misfit(input_shape, num_classes))
        if input_shape is None or tuple(input_shape) == self.shape:
            return self
        channels, height, width = input_shape
        train, test = (part.fitted((channels, height, width)) for part in (self.train, self.test))
        return replace(self, train=train, test=test)

    def _fits(self, shape: tuple[int, ...] | None) -> bool:
        if shape is None:
            return True
        if len(shape) != 3 or shape[0] != self.shape[0]:
            return False
        if isinstance(self.train, Folder):
            return shape[1] == shape[2]
        return shape[1] >= self.shape[1] and shape[2] >= self.shape[2]

    def _misfit(self, input_shape: tuple[int, ...] | None, num_classes: int | None) -> str:
        asked = "" if input_shape is None else f" an input of {_times(input_shape)}"
        if num_classes is not None:
            asked += f"{' and' if asked else ''} {num_classes} classes"
        size = ",".join(map(str, self.shape))
        return (
            f"{self.name} has {len(self.classes)} classes of images of {_times(self.shape)}, which "
            f"do not fit{asked}: pass --input {size} --num-classes {len(self.classes)} "
            f"(input_shape={self.shape}, num_classes={len(self.classes)})"
        )


def load(name: str, root: Path | None = None) -> Data:
    """The data set of that name, or what a function in a file of one's own returns.

    `root` is the folder of data sets, by default N2NFX_DATA or ~/.cache/n2nfx. Nothing is ever
    fetched. "data.py:load" calls that function without arguments; it returns a `Data`, or
    ((images, labels), (images, labels)) for training and testing: arrays or tensors, uint8 of
    shape (N, channels, height, width) and whole numbers from 0. Raises UsageError for a name that
    there is not, CannotOperate where the data is not here, DamagedFile where it is not whole.
    """
    if ownfile.is_file(name):
        return _from_function(ownfile.canonical(name, "load"))
    one = catalogue.entry(name)
    place = catalogue.require(one, catalogue.data_root(root))
    if one.format == "folder":
        return _from_folder(one, place.folder)
    train, test = (_part(one, place, files) for files in (one.train, one.test))
    return _in_memory(one.name, train, test, one.classes)


def load_for(
    model: str,
    name: str,
    root: Path | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Data:
    """`load`, and the images brought to what a model of that name takes, where that is known.

    Networks of ours are made for one size; images that are smaller are padded to it. One that
    takes no images takes them as vectors.
    """
    found = load(name, root)
    ours = NETWORKS.get(model.removeprefix("n2nfx:"))
    if input_shape is None and ours is not None and len(ours.input_shape) == 1:
        return replace(found.fitted(None, num_classes), flat=True)
    if input_shape is None and ours is not None and len(ours.input_shape) == len(found.shape):
        input_shape = (found.shape[0], *map(max, found.shape[1:], ours.input_shape[1:]))
    return found.fitted(input_shape, num_classes)


def _part(
    one: catalogue.Entry, place: catalogue.Place, files: tuple[catalogue.File, ...]
) -> Images:
    """The training or the testing images."""
    if one.format == "idx":
        images, labels = files
        pixels = formats.idx_images(place.paths[images.name], images.size)
        named = formats.idx_labels(
            place.paths[labels.name], classes=len(one.classes), size=labels.size
        )
        if len(pixels) != len(named):
            raise DamagedFile(
                f"{place.folder}: {images.name} has {len(pixels):,} images, "
                f"{labels.name} {len(named):,} labels"
            )
    else:
        read = [
            formats.cifar(
                place.paths[file.name], classes=len(one.classes), shape=one.shape,
                label_bytes=one.label_bytes, size=file.size,
            )
            for file in files
        ]  # fmt: skip
        pixels, named = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    return Images(torch.from_numpy(pixels.copy()), torch.from_numpy(named))


def _in_memory(name: str, train: Images, test: Images, classes: tuple[str, ...]) -> Data:
    mean, std = train.moments()
    # A channel that never changes has no deviation to divide by.
    return Data(name, train, test, classes, mean, tuple(value or 1.0 for value in std))


def _from_folder(one: catalogue.Entry, root: Path) -> Data:
    classes, train = folder.find(root / "train")
    others, test = folder.find(root / "val")
    if classes != others:
        odd = sorted(set(classes) ^ set(others))
        raise DamagedFile(f"{root}: {odd[0]} is a class of only one of train/ and val/")
    return Data(one.name, train, test, classes, *_IMAGENET)


def _from_function(canonical: str) -> Data:
    function = ownfile.load(canonical)
    with redirect_stdout(sys.stderr):  # stdout is for data; what a file prints is narration
        made = function()
    if isinstance(made, Data):
        return made
    match made:
        case ((train, train_labels), (test, test_labels)):
            pass
        case _:
            raise CannotOperate(
                f"{canonical} returned {type(made).__name__}; it must return "
                "((images, labels), (images, labels)) for training and testing, or a Data"
            )
    try:
        training, testing = _as_images(train, train_labels), _as_images(test, test_labels)
        _require_alike(training, testing)
    except (UsageError, TypeError, ValueError) as error:
        raise CannotOperate(f"{canonical}: {error}") from error
    count = 1 + max(int(part.labels.max()) for part in (training, testing))
    return _in_memory(canonical, training, testing, tuple(map(str, range(count))))


def _as_images(pixels: object, labels: object) -> Images:
    named = torch.as_tensor(labels)
    if named.is_floating_point() or not named.numel() or int(named.min()) < 0:
        raise UsageError("labels must be whole numbers from 0, and there must be some")
    return Images(torch.as_tensor(pixels), named.to(torch.int64))


def _require_alike(train: Images, test: Images) -> None:
    """Raise UsageError where test images have another shape than training images, or none."""
    if 0 in train.shape:
        raise UsageError(f"images of {_times(train.shape)} have no pixels")
    if train.shape != test.shape:
        raise UsageError(
            f"training images are of {_times(train.shape)}, test images of {_times(test.shape)}"
        )


def _rows(indices: np.ndarray, size: int, keep_last: bool) -> list[np.ndarray]:
    if size < 1:
        raise UsageError(f"the batch size is {size}, and must be 1 or more")
    end = len(indices) if keep_last else len(indices) - len(indices) % size
    return [indices[start : start + size] for start in range(0, end, size)]


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
