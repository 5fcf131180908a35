"""An image folder is read by any number of workers to the same bytes; a bad file is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from n2nfx.errors import CannotOperate, DamagedFile, UsageError
from n2nfx.training import folder
from n2nfx.training.augment import draws
from n2nfx.training.data import load
from n2nfx.training.folder import Folder, damages, find, read

CLASSES = {"n01": 3, "n02": 1, "n03": 2}


def save(path: Path, height: int = 40, width: int = 50, seed: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(1, (height, width, 3), seed)[0])
    image.convert(mode).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with JPEG and PNG, in training and for validation."""
    top = tmp_path_factory.mktemp("data")
    for part in ("train", "val"):
        for name, count in CLASSES.items():
            for number in range(count):
                ending = "JPEG" if number % 2 == 0 else "png"
                save(top / "imagenet" / part / name / f"{number}.{ending}", seed=number)
            (top / "imagenet" / part / name / "notes.txt").write_text("no image")
    return top


@pytest.fixture
def images(root: Path) -> Folder:
    return replace(find(root / "imagenet" / "train")[1], size=16)


def test_classes_are_folders_and_the_first_images_are_of_many_classes(root: Path) -> None:
    classes, images = find(root / "imagenet" / "train")
    assert classes == tuple(CLASSES)
    named = [f"{path.parent.name}/{path.name}" for path in images.paths]
    assert named == [
        "n01/0.JPEG",
        "n02/0.JPEG",
        "n03/0.JPEG",
        "n01/1.png",
        "n03/1.png",
        "n01/2.JPEG",
    ]
    assert images.labels.tolist() == [0, 1, 2, 0, 2, 0]


def test_imagenet_is_a_data_set_like_the_others(root: Path) -> None:
    found = load("imagenet", root)
    assert found.shape == (3, 224, 224)
    assert found.classes == tuple(CLASSES)
    inputs, labels = found.fitted((3, 32, 32), 1000).first(3)
    assert inputs.shape == (3, 3, 32, 32)
    assert labels.tolist() == [0, 1, 2]
    assert isinstance(found.held_out(2).test, Folder)
    assert len(found.held_out(2).train) == 4
    for shape in ((1, 32, 32), (3, 32, 16)):
        with pytest.raises(UsageError, match="pass --input 3,224,224 --num-classes 3"):
            found.fitted(shape, None)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_batches_and_order_change_no_byte(images: Folder) -> None:
    drawn = draws(0, "augment", 0, len(images))
    whole, labels = next(images.batches([np.arange(6)], drawn))
    assert labels.tolist() == images.labels.tolist()
    rows = [np.array([5, 0]), np.array([3]), np.array([1, 4, 2])]
    for workers in (0, 2):
        read_again = list(images.batches(rows, drawn, workers))
        for row, (some, named) in zip(rows, read_again, strict=True):
            assert torch.equal(some, whole[row])
            assert named.tolist() == labels[row].tolist()


def test_each_image_is_the_part_that_its_own_bits_say(images: Folder) -> None:
    """Cut, brought to size and flipped by hand; both kinds of flip are there."""
    drawn = draws(1, "augment", 0, len(images))
    whole, _ = next(images.batches([np.arange(6)], drawn))
    flips = set()
    for path, bits, made in zip(images.paths, drawn, whole, strict=True):
        with Image.open(path) as image:
            box, flipped = folder._part(image.size, int(bits))
            cut = image.resize((16, 16), Image.Resampling.BILINEAR, box=box)
        if flipped:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert np.array_equal(np.asarray(cut).transpose(2, 0, 1), made.numpy())
        flips.add(flipped)
    assert flips == {False, True}


def test_reading_draws_nothing_from_the_caller(images: Folder) -> None:
    before = torch.get_rng_state()
    list(images.batches([np.arange(6)], draws(0, "augment", 0, 6)))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_middle_is_taken_without_augmentation(tmp_path: Path) -> None:
    """Red on the left half, blue on the right: the middle square has as much of both."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32, 0] = image[:, 32:, 2] = 200
    Image.fromarray(image).save(tmp_path / "x.png")
    middle = read(tmp_path / "x.png", 28, None)
    assert middle[0, :, :13].eq(200).all()
    assert middle[2, :, 15:].eq(200).all()
    assert middle[1].eq(0).all()
    assert middle[0].sum() == middle[2].sum()


@given(st.integers(0, 2**64 - 1), st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=300)
def test_a_part_lies_in_the_image_and_has_the_area_and_sides_that_it_may(
    bits: int, width: int, height: int
) -> None:
    (left, top, right, bottom), _ = folder._part((width, height), bits)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    wide, high = right - left, bottom - top
    assert wide * high <= width * height * (1 + 1e-9)
    if right - left < width * (1 - 1e-9) and bottom - top < height * (1 - 1e-9):
        assert wide * high >= 0.08 * width * height * (1 - 1e-9)
        assert 3 / 4 * (1 - 1e-9) <= wide / high <= 4 / 3 * (1 + 1e-9)


def test_parts_and_flips_are_drawn_evenly() -> None:
    parts = [folder._part((1000, 1000), int(bits)) for bits in draws(0, "augment", 0, 2000)]
    assert 900 < sum(flipped for _, flipped in parts) < 1100
    areas = [(right - left) * (bottom - top) for (left, top, right, bottom), _ in parts]
    assert 0.50e6 < np.mean(areas) < 0.56e6
    middles = [(left + right) / 2 for (left, _, right, _), _ in parts]
    assert 485 < np.mean(middles) < 515


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    save(path, mode=mode)
    assert read(path, 8, None).shape == (3, 8, 8)
    assert read(path, 8, 77).shape == (3, 8, 8)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_no_image_is_named_out_of_a_worker_too(tmp_path: Path, workers: int) -> None:
    save(tmp_path / "train" / "a" / "0.jpg")
    whole = (tmp_path / "train" / "a" / "0.jpg").read_bytes()
    bad = tmp_path / "train" / "b" / "0.jpg"
    bad.parent.mkdir()
    for data in (b"", b"hello", whole[:100], whole[: len(whole) // 2]):
        bad.write_bytes(data)
        _, images = find(tmp_path / "train")
        with pytest.raises(DamagedFile, match=f"{bad}: cannot be read as an image"):
            list(images.batches([np.arange(2)], None, workers))


def test_what_is_no_image_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(CannotOperate, match="has no folder for a class"):
        find(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CannotOperate, match="empty has no image; images are files that end in"):
        find(tmp_path)


def test_parts_of_different_classes_are_told(tmp_path: Path) -> None:
    save(tmp_path / "imagenet" / "train" / "a" / "0.png")
    save(tmp_path / "imagenet" / "val" / "b" / "0.png")
    with pytest.raises(DamagedFile, match="a is a class of only one"):
        load("imagenet", tmp_path)


def test_files_that_do_not_begin_as_images_are_found(root: Path, tmp_path: Path) -> None:
    assert not list(damages(find(root / "imagenet" / "train")[1]))
    save(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "1.jpg").write_bytes(b"")
    (tmp_path / "a" / "2.jpg").write_bytes(b"<html>")
    told = list(damages(find(tmp_path)[1]))
    assert told == [
        f"{tmp_path}/a/1.jpg: is empty", f"{tmp_path}/a/2.jpg: is neither JPEG nor PNG"
    ]  # fmt: skip
