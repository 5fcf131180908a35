"""Branches between layouts: whatever fits meets its target exactly, and places stay places."""

from math import prod

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from n2nfx.fitting import Fit, Matching, fit
from n2nfx.layouts import Fold, Grids, Layout, Misfit, Places
from n2nfx.network import Move

BATCH = 3
# A network on 32x32 pixels: 8x8 patches, 4x4 after that; a class token, then a register before it.
GRIDS = Grids([(8, 8)], joined={65: (1, 64), 66: (1, 65), 17: (1, 16)}, whole=(32, 32))


def shape(layout: Layout) -> tuple[int, ...]:
    """A tensor's shape, by definition."""
    batch = layout.fold.outside * BATCH * layout.fold.inside
    if layout.batch == 1:
        return (*layout.places, batch, layout.channels)
    if layout.last:
        return (batch, *layout.places, layout.channels)
    return (batch, layout.channels, *layout.places)


def moved(value: Tensor, move: Move) -> Tensor:
    if move.how == "narrow":
        dimension, start, length = move.by
        return value.index_select(dimension, torch.arange(start, start + length))
    if move.how == "pad":
        return functional.pad(value, move.by)
    if move.how == "unflatten":
        return value.unflatten(move.by[0], move.by[1:])
    return getattr(value, move.how)(*move.by)


def through(branch: Fit, value: Tensor, weight: Tensor) -> Tensor:
    """What a branch makes of a value: the definition of its record."""
    for move in branch.before:
        value = moved(value, move)
    if branch.pool is not None:
        pooled = [functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d]
        value = [*pooled, functional.adaptive_avg_pool3d][len(branch.pool) - 1](value, branch.pool)  # type: ignore[arg-type]
    if branch.kind == "linear":
        value = functional.linear(value if branch.places else value.flatten(1), weight)
    else:
        convolve = [functional.conv1d, functional.conv2d, functional.conv3d][weight.dim() - 3]
        value = convolve(value, weight, None, branch.stride, branch.padding)  # type: ignore[arg-type]
    for move in branch.after:
        value = moved(value, move)
    if branch.shrink:
        most = [functional.max_pool1d, functional.max_pool2d, functional.max_pool3d]
        value = most[len(branch.shrink) - 1](value, branch.shrink)  # type: ignore[arg-type]
    return value


def on_grid(value: Tensor, layout: Layout, places: Places) -> Tensor:
    """A value as (batch, channels, *places), written out without the code that is tested."""
    if layout.batch == 1:
        value = value.permute(1, 0, 2)
    if layout.last:
        value = value.permute(0, value.dim() - 1, *range(1, value.dim() - 1))
    return value.reshape(*value.shape[:2], -1)[..., -prod(places) :].reshape(
        *value.shape[:2], *places
    )


def _is_target(writes: Layout, own: tuple[int, ...] | None) -> bool:
    """Convolutions write their channels first, linear layers last."""
    if own is None:
        return writes.last or not writes.places
    return not writes.last and len(own) == len(writes.places)


sizes = st.sampled_from([1, 2, 3, 4, 8, 16, 32])
layouts = st.one_of(
    st.builds(
        Layout,
        channels=st.integers(1, 4),
        places=st.one_of(
            st.tuples(),
            st.tuples(st.sampled_from([1, 16, 17, 49, 64, 65, 66, 1024])),
            st.tuples(sizes, sizes),
            sizes.map(lambda size: (size, size)),
        ),
        last=st.booleans(),
        fold=st.sampled_from([Fold(), Fold(), Fold(), Fold(1, 4), Fold(4, 1)]),
    ),
    st.builds(
        Layout,
        channels=st.integers(1, 4),
        places=st.tuples(st.sampled_from([16, 17, 64, 65])),
        last=st.just(True),
        batch=st.just(1),
    ),
)


@given(
    reads=layouts,
    writes=layouts,
    own=st.sampled_from([None, (1,), (3,), (2, 2), (3, 3), (5, 5)]),
    kernel=st.sampled_from(["target", "target", 1, 3]),
    resolution=st.sampled_from(["stride", "pool", "shrink"]),
)
@settings(max_examples=400, deadline=None)
def test_whatever_fits_meets_the_target_exactly(
    reads: Layout,
    writes: Layout,
    own: tuple[int, ...] | None,
    kernel: int | str,
    resolution: Matching,
) -> None:
    assume(_is_target(writes, own))
    found = fit(reads, writes, GRIDS, own, kernel, resolution)  # type: ignore[arg-type]
    if isinstance(found, Misfit):
        assert found.reason
        return
    made = through(found, torch.zeros(shape(reads)), torch.zeros(found.weight_shape))
    assert made.shape == shape(writes)
    if found.kind == "linear" and found.places:  # what is verified where an artifact is rehearsed
        assert len(found.places) == len(writes.places)
    prefix = prod(writes.places) - prod(found.places) if writes.places else 0
    assert prefix in (0, 1, 2)  # tokens before the grid
    assert resolution == "stride" or prod(found.stride) == 1
    assert resolution == "shrink" or not found.shrink
    assert resolution != "shrink" or found.pool is None


ON_8X8 = (
    Layout(3, (8, 8), last=False),
    Layout(5, (8, 8), last=True),
    Layout(4, (64,), last=False),
    *(Layout(4, (count,), last=True) for count in (64, 65, 66)),
    *(Layout(4, (count,), last=True, batch=1) for count in (64, 65)),
)


@pytest.mark.parametrize("reads", ON_8X8, ids=str)
@pytest.mark.parametrize("writes", ON_8X8, ids=str)
def test_places_stay_where_they_are(reads: Layout, writes: Layout) -> None:
    """A branch with one weight a channel gives each place what the source has there."""
    found = fit(reads, writes, GRIDS, None if writes.last else (1,) * len(writes.places), 1)
    assert isinstance(found, Fit)
    weight = torch.eye(writes.channels, reads.channels).reshape(found.weight_shape)
    source = torch.randn(shape(reads))
    made = through(found, source, weight)
    before = on_grid(source, reads, found.places)
    after = on_grid(made, writes, found.places)
    channels = min(reads.channels, writes.channels)
    assert torch.equal(after[:, :channels], before[:, :channels])
    assert int(made.count_nonzero()) == int(after[:, :channels].count_nonzero())  # zeros elsewhere


MAP, LAST = Layout(3, (8, 8), last=False), Layout(3, (8, 8), last=True)
ROW, CLASS = Layout(3, (64,), last=True), Layout(3, (65,), last=True)
VECTOR = Layout(5, (), last=True)
LEGAL = {
    "channels first to last": (MAP, LAST, None, ["movedim"], []),
    "channels last to first": (LAST, MAP, (3, 3), ["movedim"], []),
    "map to tokens": (MAP, ROW, None, ["flatten", "movedim"], []),
    "map to tokens behind a class token": (MAP, CLASS, None, ["flatten", "movedim"], ["pad"]),
    "tokens to map": (CLASS, MAP, (3, 3), ["narrow", "movedim", "unflatten"], []),
    "tokens to channels last": (CLASS, LAST, None, ["narrow", "unflatten"], []),
    "tokens to fewer tokens": (
        CLASS,
        Layout(3, (17,), last=True),
        None,
        ["narrow", "movedim", "unflatten"],
        ["flatten", "movedim", "pad"],
    ),
    "the class token aside": (CLASS, ROW, None, ["narrow"], []),
    "tokens to a vector": (CLASS, VECTOR, None, ["movedim"], []),
    "channels last to a vector": (LAST, VECTOR, None, ["flatten", "movedim"], []),
    "map to a vector": (MAP, VECTOR, None, [], []),
    "a sequence first": (ROW, Layout(3, (64,), True, batch=1), None, [], ["transpose"]),
    "tokens to tokens": (CLASS, CLASS, None, [], []),
    "windows to windows": (
        Layout(3, (49,), True, fold=Fold(1, 64)),
        Layout(9, (49,), True, fold=Fold(1, 64)),
        None,
        [],
        [],
    ),
}


@pytest.mark.parametrize("case", LEGAL)
def test_layouts_are_met_by_as_few_moves_as_it_takes(case: str) -> None:
    reads, writes, own, before, after = LEGAL[case]
    found = fit(reads, writes, GRIDS, own, "target")
    assert isinstance(found, Fit)
    assert [move.how for move in found.before] == before
    assert [move.how for move in found.after] == after
    kind = "linear" if own is None and prod(found.stride) <= 1 and len(before) < 3 else "conv"
    assert found.kind == kind


REFUSED = {
    "tokens without a grid": (Layout(3, (63,), True), MAP, "63 tokens are no grid as 8x8"),
    "tokens of other things": (Layout(3, (77,), True), ROW, "77 tokens do not become 64"),
    "windows": (
        Layout(3, (49,), True, fold=Fold(1, 4)),
        ROW,
        "folded 4 times at the source and not folded at",
    ),
    "other windows": (
        Layout(3, (49,), True, fold=Fold(1, 4)),
        Layout(3, (16,), True, fold=Fold(1, 4)),
        "49 places inside do not become 16",
    ),
    "folded the other way": (
        Layout(3, (49,), True, fold=Fold(4, 1)),
        Layout(3, (49,), True, fold=Fold(1, 4)),
        "different orders",
    ),
    "windows beside the batch": (MAP, Layout(3, (5, 13), True), "5x13 map"),
    "pictures and videos": (Layout(3, (8, 8, 8), False), MAP, "8x8x8 map"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_misfit_says_what_does_not_fit(case: str) -> None:
    reads, writes, reason = REFUSED[case]
    found = fit(reads, writes, GRIDS, None, "target")
    assert isinstance(found, Misfit)
    assert reason in found.reason


def test_onto_tokens_places_are_averaged_and_onto_maps_strided() -> None:
    coarse = Layout(3, (4, 4), last=False)
    tokens = fit(MAP, Layout(3, (16,), last=True), GRIDS, None, "target")
    last = fit(MAP, Layout(3, (4, 4), last=True), GRIDS, None, "target")
    first = fit(CLASS, coarse, GRIDS, (3, 3), "target")
    assert isinstance(tokens, Fit)
    assert isinstance(last, Fit)
    assert isinstance(first, Fit)
    assert (tokens.pool, tokens.stride) == ((4, 4), (1, 1))
    assert (last.pool, last.stride) == (None, (2, 2))
    assert (first.pool, first.stride, first.weight_shape) == (None, (2, 2), (3, 3, 3, 3))


def test_a_kernel_that_is_asked_for_is_laid_on_maps_not_on_tokens() -> None:
    on_map = fit(LAST, LAST, GRIDS, None, 3)
    on_tokens = fit(ROW, ROW, GRIDS, None, 3)
    assert isinstance(on_map, Fit)
    assert isinstance(on_tokens, Fit)
    assert (on_map.weight_shape, on_map.padding) == ((3, 3, 3, 3), (1, 1))
    assert on_tokens.weight_shape == (3, 3)
