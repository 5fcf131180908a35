"""An image has one form in an epoch: by seed, epoch and index, whatever surrounds it."""

import numpy as np
import pytest
import torch
from data_samples import pixels
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from n2nfx.errors import UsageError
from n2nfx.training.augment import Augmentation, draws, order

COUNT = 40
IMAGES = torch.from_numpy(pixels(COUNT, (3, 6, 5)))


def by_hand(image: Tensor, padding: int, top: int, left: int, flipped: bool) -> Tensor:
    """The crop and the flip of one image, as they are defined."""
    _, height, width = image.shape
    padded = functional.pad(image, (padding,) * 4)
    cut = padded[:, top : top + height, left : left + width]
    return cut.flip(-1) if flipped else cut


@given(st.integers(0, 2**64 - 1), st.integers(0, 4), st.booleans())
def test_every_form_is_a_crop_of_the_padded_image_maybe_flipped(
    bits: int, padding: int, flip: bool
) -> None:
    form = Augmentation(padding, flip)(IMAGES[:1], np.array([bits], np.uint64))[0]
    places = range(2 * padding + 1)
    forms = [
        by_hand(IMAGES[0], padding, top, left, flipped)
        for top in places
        for left in places
        for flipped in {False, flip}
    ]
    assert any(torch.equal(form, one) for one in forms)


def test_all_places_and_both_sides_are_drawn_evenly() -> None:
    """81 places times two sides, 200 images for each; six standard deviations of room."""
    marks = torch.zeros(81 * 2 * 200, 1, 9, 9, dtype=torch.uint8)
    marks[:, :, 4, 4], marks[:, :, 4, 3] = 1, 2  # the second is left of the first
    forms = Augmentation()(marks, draws(0, "augment", 0, len(marks)))[:, 0]
    assert forms.amax((1, 2)).min() >= 1
    where = (forms == 1).flatten(1).int().argmax(1)
    beside = (forms == 2).flatten(1).int().argmax(1)
    counts = torch.bincount(where, minlength=81)
    assert counts.min() > 400 - 6 * 20
    assert counts.max() < 400 + 6 * 20
    flips = (beside == where + 1).sum().item()
    assert abs(flips / ((forms == 2).any(1).any(1)).sum().item() - 0.5) < 0.02


def test_without_padding_and_flip_nothing_changes() -> None:
    drawn = draws(3, "augment", 1, COUNT)
    assert torch.equal(Augmentation(0, False)(IMAGES, drawn), IMAGES)


@given(st.permutations(range(COUNT)), st.lists(st.integers(1, COUNT - 1), max_size=5))
def test_the_form_does_not_depend_on_batch_or_order(mixed: list[int], cuts: list[int]) -> None:
    augmentation, drawn = Augmentation(2), draws(7, "augment", 3, COUNT)
    whole = augmentation(IMAGES, drawn)
    for indices in np.split(np.array(mixed), sorted(cuts)):
        assert torch.equal(augmentation(IMAGES[indices], drawn[indices]), whole[indices])


@given(st.integers(0, 2**32), st.integers(0, 500), st.integers(1, 300), st.integers(1, 300))
def test_draws_are_the_same_however_many_there_are(
    seed: int, epoch: int, few: int, more: int
) -> None:
    one, other = draws(seed, "augment", epoch, few), draws(seed, "augment", epoch, more)
    length = min(few, more)
    np.testing.assert_array_equal(one[:length], other[:length])


def test_seeds_epochs_and_purposes_draw_differently() -> None:
    drawn = [
        draws(seed, purpose, epoch, 50).tolist()
        for seed in (0, 1)
        for purpose in ("augment", "order")
        for epoch in (0, 1)
    ]
    assert len({tuple(row) for row in drawn}) == 8


def test_the_draws_are_written_down() -> None:
    """A change would change every training run: it must be one that somebody meant."""
    assert draws(0, "augment", 0, 2).tolist() == [4129379376475182647, 1109293735256034898]


def test_an_order_is_a_permutation_and_depends_on_the_epoch() -> None:
    first, second = order(0, 0, 1000), order(0, 1, 1000)
    assert sorted(first.tolist()) == list(range(1000))
    assert first.tolist() != second.tolist()
    assert order(0, 0, 1000).tolist() == first.tolist()


def test_a_padding_that_cannot_be_is_told() -> None:
    for padding in (-1, 51):
        with pytest.raises(UsageError, match=f"padding is {padding}"):
            Augmentation(padding)
