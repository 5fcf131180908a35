"""A data set by its name: what is read, how it is split, normalized, fitted and handed out."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import SHAPE, Set, cifar_bytes, cifar_set, fashion_set, pixels
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from n2nfx import catalogue
from n2nfx.errors import CannotOperate, DamagedFile, UsageError
from n2nfx.training.augment import Augmentation
from n2nfx.training.data import Data, load, load_for
from n2nfx.training.images import Images


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> dict[str, Set]:
    """Small data sets in the place of the real ones."""
    made = {"cifar10": cifar_set(), "fashion-mnist": fashion_set()}
    entries = {name: one.entry for name, one in made.items()}
    monkeypatch.setattr(catalogue, "ENTRIES", {**catalogue.ENTRIES, **entries})
    return made


def images(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Images:
    labels = torch.arange(count) % 10
    return Images(torch.from_numpy(pixels(count, shape, seed)), labels)


def data_of(train: Images, test: Images) -> Data:
    return Data("made", train, test, tuple("abcdefghij"), *train.moments())


MADE = data_of(images(50), images(20, seed=1))


# Reading


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_both_parts_are_read_in_the_files_order(
    sets: dict[str, Set], tmp_path: Path, name: str
) -> None:
    one = sets[name]
    one.put(tmp_path)
    found = load(name, tmp_path)
    assert (len(found.train), len(found.test)) == one.entry.images
    assert found.shape == one.entry.shape
    assert found.classes == catalogue.ENTRIES[name].classes
    made = pixels(sum(one.entry.images), one.entry.shape)
    assert isinstance(found.train, Images)
    assert isinstance(found.test, Images)
    read = torch.cat([found.train.pixels, found.test.pixels])
    assert torch.equal(read, torch.from_numpy(made))
    labels = torch.cat([found.train.labels, found.test.labels])
    assert torch.equal(labels, torch.arange(len(made)) % 10)


def test_a_network_that_takes_vectors_is_given_the_images_as_such(
    sets: dict[str, Set], tmp_path: Path
) -> None:
    sets["cifar10"].put(tmp_path)
    plain, flat = load("cifar10", tmp_path), load_for("n2nfx:mlp", "cifar10", tmp_path)
    assert (flat.shape, plain.shape) == ((int(np.prod(SHAPE)),), SHAPE)
    pairs = zip(plain.epoch(1, 4, seed=5), flat.epoch(1, 4, seed=5), strict=True)
    assert all(vectors.equal(images.flatten(1)) for (images, _), (vectors, _) in pairs)
    assert flat.first(3)[0].equal(plain.first(3)[0].flatten(1))


def test_every_file_of_a_data_set_is_refused_when_it_is_cut_where_a_record_ends(
    sets: dict[str, Set], tmp_path: Path
) -> None:
    folder = sets["cifar10"].put(tmp_path)
    record = 1 + int(np.prod(SHAPE))
    for name, data in sets["cifar10"].files.items():
        (folder / name).write_bytes(data[:-record])
        with pytest.raises(DamagedFile, match=f"{folder / name}: has .* bytes of {len(data):,}"):
            load("cifar10", tmp_path)
        (folder / name).write_bytes(data)
    load("cifar10", tmp_path)


def test_images_and_labels_that_do_not_belong_together_are_refused(
    sets: dict[str, Set], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, one = fashion_set(train=31), sets["fashion-mnist"]
    labels = more.entry.train[1].name
    entry = replace(one.entry, train=(one.entry.train[0], more.entry.train[1]))
    monkeypatch.setattr(catalogue, "ENTRIES", {"fashion-mnist": entry})
    folder = one.put(tmp_path)
    (folder / labels).write_bytes(more.files[labels])
    with pytest.raises(DamagedFile, match=f"30 images, {labels} 31 labels"):
        load("fashion-mnist", tmp_path)


def test_data_that_is_not_here_is_told_with_what_brings_it(
    sets: dict[str, Set], tmp_path: Path
) -> None:
    with pytest.raises(CannotOperate, match=r"not in .*bin; n2nfx data fetch cifar10"):
        load("cifar10", tmp_path)
    (sets["cifar10"].put(tmp_path) / "test_batch.bin").unlink()
    with pytest.raises(CannotOperate, match=r"lacks test_batch\.bin"):
        load("cifar10", tmp_path)
    with pytest.raises(UsageError, match="did you mean cifar10"):
        load("cifar", tmp_path)


def test_the_catalogue_agrees_with_itself() -> None:
    """Sizes follow from the formats, and the published layout of each data set."""
    for one in catalogue.ENTRIES.values():
        assert len(one.classes) in (0, one.class_count)
        assert len(set(one.classes)) == len(one.classes)
        assert all(len(item.sha256) == 64 for item in (*one.files, *one.archives))
        assert all(len(archive.mirrors) > 1 for archive in one.archives)
    for name in ("cifar10", "cifar100"):
        one = catalogue.ENTRIES[name]
        for files, count in zip((one.train, one.test), one.images, strict=True):
            assert sum(file.size for file in files) == count * (one.label_bytes + 3072)
    for images_file, labels_file, count in zip(
        catalogue.ENTRIES["fashion-mnist"].files[::2],
        catalogue.ENTRIES["fashion-mnist"].files[1::2],
        (60_000, 10_000),
        strict=True,
    ):
        assert images_file.size == 16 + 784 * count
        assert labels_file.size == 8 + count


def test_the_real_fashion_mnist() -> None:
    """Its published numbers; mean and deviation are those that everybody uses."""
    one = catalogue.entry("fashion-mnist")
    if catalogue.find(one, catalogue.data_root()).state != "whole":
        pytest.skip("Fashion-MNIST is not here: apt install dataset-fashion-mnist")
    found = load("fashion-mnist")
    for part, count in ((found.train, 6000), (found.test, 1000)):
        assert torch.bincount(part.labels).tolist() == [count] * 10
    assert found.mean == pytest.approx((0.2860,), abs=5e-5)
    assert found.std == pytest.approx((0.3530,), abs=5e-5)
    assert found.train.labels[:5].tolist() == [9, 0, 0, 3, 0]


# In memory


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9))
def test_mean_and_deviation_are_exact(channels: int, count: int, seed: int) -> None:
    made = images(count, (channels, 3, 4), seed)
    mean, std = made.moments()
    values = made.pixels.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_the_normalized_training_set_has_mean_0_and_deviation_1() -> None:
    inputs, _ = MADE.first(50)
    assert inputs.dtype == torch.float32
    assert inputs.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert inputs.std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_the_first_batch_is_the_first_images_as_they_are() -> None:
    assert isinstance(MADE.train, Images)
    inputs, labels = MADE.first(7)
    assert torch.equal(inputs, MADE.normalized(MADE.train.pixels[:7]))
    assert torch.equal(labels, MADE.train.labels[:7])
    for count in (0, 51):
        with pytest.raises(UsageError, match=f"batch of {count} cannot be: made has 50"):
            MADE.first(count)


def forms(batches: Iterator[tuple[Tensor, Tensor]]) -> list[bytes]:
    """Each image with its label, in the form in which it came, whatever the order."""
    return sorted(
        bytes([int(label)]) + image.numpy().tobytes()
        for inputs, labels in batches
        for image, label in zip(inputs, labels, strict=True)
    )


@given(st.integers(1, 60), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_has_the_same_images_whatever_the_batch_size(
    size: int, seed: int, epoch: int
) -> None:
    one, other = MADE.epoch(epoch, size, seed=seed), MADE.epoch(epoch, 50, seed=seed)
    found = forms(one)
    assert found == forms(other)
    assert len(found) == 50


def test_epochs_and_seeds_differ_and_the_last_batch_may_be_left_out() -> None:
    assert forms(MADE.epoch(0, 10)) != forms(MADE.epoch(1, 10))
    assert forms(MADE.epoch(0, 10)) != forms(MADE.epoch(0, 10, seed=1))
    sizes = [len(labels) for _, labels in MADE.epoch(0, 20)]
    assert sizes == [20, 20, 10]
    rows = [
        torch.cat([named for _, named in MADE.epoch(*asked)]).tolist() for asked in ((0, 9), (1, 9))
    ]
    rows.append(torch.cat([named for _, named in MADE.epoch(0, 9, seed=1)]).tolist())
    assert len({tuple(row) for row in rows}) == 3
    assert [len(labels) for _, labels in MADE.epoch(0, 20, keep_last=False)] == [20, 20]
    with pytest.raises(UsageError, match="the batch size is 0"):
        list(MADE.epoch(0, 0))


def test_without_augmentation_an_epoch_is_the_training_set_in_another_order() -> None:
    assert isinstance(MADE.train, Images)
    plain = Images(MADE.train.pixels, MADE.train.labels, Augmentation(0, flip=False))
    (batch,) = data_of(plain, plain).epoch(0, 50)
    assert forms(iter([batch])) == forms(iter([MADE.first(50)]))
    assert not torch.equal(batch[1], plain.labels)


def test_testing_is_the_test_set_in_its_order() -> None:
    assert isinstance(MADE.test, Images)
    labels = torch.cat([labels for _, labels in MADE.testing(6)])
    assert torch.equal(labels, MADE.test.labels)
    inputs = torch.cat([inputs for inputs, _ in MADE.testing(6)])
    assert torch.equal(inputs, MADE.normalized(MADE.test.pixels))


def test_both_parts_go_to_a_device() -> None:
    moved = MADE.to("meta")
    for part in (moved.train, moved.test):
        assert isinstance(part, Images)
        assert part.pixels.device.type == part.labels.device.type == "meta"
    assert moved.classes == MADE.classes


@given(st.integers(1, 49), st.integers(0, 20))
def test_what_is_held_out_is_the_rest_and_more_holds_fewer(count: int, seed: int) -> None:
    assert isinstance(MADE.train, Images)
    split = MADE.held_out(count, seed)
    rows = {image.numpy().tobytes() for image in MADE.train.pixels}
    kept, held = (
        {image.numpy().tobytes() for image in part.pixels}
        for part in (split.train, split.test)
        if isinstance(part, Images)
    )
    assert len(held) == count
    assert kept | held == rows
    assert not kept & held
    assert split.mean == MADE.mean
    if count < 49:
        more = MADE.held_out(count + 1, seed).test
        assert isinstance(more, Images)
        assert held < {image.numpy().tobytes() for image in more.pixels}


def test_another_seed_holds_others_out() -> None:
    first, second = (MADE.held_out(10, seed).test for seed in (0, 1))
    assert isinstance(first, Images)
    assert isinstance(second, Images)
    assert not torch.equal(first.pixels, second.pixels)


def test_a_split_that_leaves_nothing_is_refused() -> None:
    for count in (0, 50):
        with pytest.raises(UsageError, match=f"cannot hold out {count} of 50"):
            MADE.held_out(count)


# Whether it fits a network


def test_small_images_are_padded_evenly_with_black_to_a_larger_input() -> None:
    found = MADE.fitted((3, 8, 8), 12).train
    assert isinstance(found, Images)
    assert isinstance(MADE.train, Images)
    assert found.shape == (3, 8, 8)
    assert torch.equal(found.pixels[:, :, 2:6, 1:6], MADE.train.pixels)
    assert int(found.pixels.long().sum()) == int(MADE.train.pixels.long().sum())
    assert MADE.fitted(None, None) is MADE
    assert MADE.fitted(SHAPE, 10) is MADE
    for shape in ((1, 8, 8), (3, 3, 8), (3, 8, 4)):
        with pytest.raises(UsageError, match="only ever padded"):
            MADE.train.fitted(shape)


@pytest.mark.parametrize(
    ("shape", "classes", "told"),
    [
        ((1, 4, 5), None, "an input of 1x4x5:"),
        ((3, 3, 5), None, "an input of 3x3x5:"),
        ((60,), None, "an input of 60:"),
        (None, 9, "do not fit 9 classes"),
        ((1, 4, 5), 9, "an input of 1x4x5 and 9 classes"),
    ],
)
def test_what_does_not_fit_is_told_with_what_to_pass(
    shape: tuple[int, ...] | None, classes: int | None, told: str
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        MADE.fitted(shape, classes)
    assert "pass --input 3,4,5 --num-classes 10" in str(caught.value)


def test_images_that_cannot_be_are_refused() -> None:
    good = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(UsageError, match=r"not torch\.float32"):
        Images(good.float(), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"not torch.uint8 of shape \(2, 3, 4\)"):
        Images(good[..., 0], torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError, match="2 images need as many labels"):
        Images(good, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UsageError, match="2 images need as many labels"):
        Images(good, torch.zeros(2))


# A function in a file of one's own


SCRIPT = """
import numpy as np
import torch

def arrays():
    print("making it")
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    return (images, np.array([0, 2])), (torch.from_numpy(images), [1, 1])

def floats():
    return (np.zeros((2, 3, 4, 4)), [0, 1]), (np.zeros((2, 3, 4, 4)), [0, 1])

def negative():
    (images, _), test = arrays()
    return (images, [0, -1]), test

def others():
    train, _ = arrays()
    return train, (np.zeros((2, 1, 4, 4), np.uint8), [0, 1])

def empty():
    part = np.zeros((2, 3, 0, 4), np.uint8), [0, 1]
    return part, part

def nothing():
    return 5

def wrong():
    raise ValueError("no luck")

def ours():
    from n2nfx.training.data import Data
    from n2nfx.training.images import Images
    part = Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]))
    return Data("mine", part, part, ("left", "right"), (0.0,), (1.0,))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    return path


def test_a_function_gives_arrays_or_tensors_or_data(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(f"{script}:arrays")
    assert found.shape == (3, 4, 4)
    assert found.classes == ("0", "1", "2")
    assert found.test.labels.tolist() == [1, 1]
    assert capsys.readouterr().out == ""
    assert load(f"{script}:ours").classes == ("left", "right")


def test_a_channel_that_never_changes_is_only_shifted(tmp_path: Path) -> None:
    path = tmp_path / "grey.py"
    path.write_text(
        "import numpy as np\ndef grey():\n"
        "    part = np.full((2, 1, 2, 2), 51, np.uint8), [0, 1]\n    return part, part\n"
    )
    found = load(f"{path}:grey")
    assert found.mean == (0.2,)
    assert found.first(2)[0].tolist() == torch.zeros(2, 1, 2, 2).tolist()


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("floats", CannotOperate, "mine.py:floats: images must be uint8"),
        ("negative", CannotOperate, "labels must be whole numbers from 0"),
        ("others", CannotOperate, "training images are of 3x4x4, test images of 1x4x4"),
        ("empty", CannotOperate, "images of 3x0x4 have no pixels"),
        ("nothing", CannotOperate, "returned int; it must return"),
        ("wrong", CannotOperate, r"mine.py:29: ValueError: no luck"),
        ("arays", UsageError, "did you mean arrays"),
    ],
)
def test_a_function_that_gives_something_else_is_told(
    script: Path, name: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        load(f"{script}:{name}")
    with pytest.raises(UsageError, match=r"name the function in it too, as in .*:load"):
        load(str(script))


def test_labels_in_a_file_that_are_outside_the_classes_name_the_file(
    sets: dict[str, Set], tmp_path: Path
) -> None:
    folder = sets["cifar10"].put(tmp_path)
    labels = np.full(20, 10)
    (folder / "test_batch.bin").write_bytes(cifar_bytes(pixels(20), labels))
    with pytest.raises(DamagedFile, match=r"test_batch.bin: image 0 has the label 10"):
        load("cifar10", tmp_path)
