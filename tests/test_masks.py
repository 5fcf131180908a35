"""Masks: exactly as many weights as asked for, nested, and the same on every machine."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from n2nfx.budget import Allocation, allocate, bounds
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.masks import (
    Masks,
    RandomRanking,
    Ranking,
    ScoreRanking,
    keep_best,
    permuted_prefix,
    select,
    top_k,
)
from n2nfx.seeds import derive

unhurried = settings(deadline=None)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INF = math.inf


@dataclass(frozen=True)
class Weight:
    """A layer as a ranking and an allocation see it: (out, in, *kernel)."""

    name: str
    weight_shape: tuple[int, ...]

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def size(self) -> int:
        return prod(self.weight_shape)

    @property
    def channels(self) -> int:
        return max(self.weight_shape[:2])


def layers_of(shapes: Sequence[tuple[int, ...]]) -> list[Weight]:
    return [Weight(f"layer{index}", shape) for index, shape in enumerate(shapes)]


def scores_of(layers: Sequence[Weight], seed: int, values: Sequence[float]) -> ScoreRanking:
    """Scores from a few values only, so that ties are everywhere."""
    drawn = np.random.default_rng(seed)
    return ScoreRanking(
        {
            layer.weight: torch.from_numpy(drawn.choice(values, size=layer.weight_shape))
            for layer in layers
        }
    )


def is_within(smaller: Tensor, larger: Tensor) -> bool:
    return not bool((smaller & ~larger).any())


def is_nested(smaller: Masks, larger: Masks) -> bool:
    return all(is_within(mask, larger[name]) for name, mask in smaller.items())


# top_k


def top_k_by_sorting(scores: Tensor, count: int) -> Tensor:
    """The definition, as slow as it is plain: Python's sort is stable."""
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index].item())
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[ranked[:count]] = True
    return kept


@unhurried
@given(
    st.lists(
        st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, INF, -INF, 6e-8, 6.0e4]),
            st.floats(-10, 10, width=16),
        )
    ),
    st.sampled_from(FLOATS),
    st.data(),
)
def test_top_k_is_what_a_stable_sort_gives(
    values: list[float], dtype: torch.dtype, data: st.DataObject
) -> None:
    scores = torch.tensor(values, dtype=dtype)
    count = data.draw(st.integers(0, len(values)))
    kept = top_k(scores, count)
    assert kept.dtype == torch.bool
    assert torch.equal(kept, top_k_by_sorting(scores, count))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64])
@pytest.mark.parametrize("count", [0, 1, 7, 99, 100])
def test_under_full_ties_the_lower_indices_are_kept(dtype: torch.dtype, count: int) -> None:
    kept = top_k(torch.full((100,), 3, dtype=dtype), count)
    assert kept.tolist() == [index < count for index in range(100)]


def test_scores_that_differ_in_the_last_bit_are_not_ties() -> None:
    score = torch.tensor(0.1, dtype=torch.float64)
    higher = torch.nextafter(score, torch.tensor(INF, dtype=torch.float64))
    assert top_k(torch.stack([score, higher, score]), 1).tolist() == [False, True, False]


def test_whole_numbers_beyond_a_doubles_precision_are_told_apart() -> None:
    assert top_k(torch.tensor([2**60, 2**60 + 1]), 1).tolist() == [False, True]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_score_that_is_nan_is_refused(dtype: torch.dtype, count: int) -> None:
    with pytest.raises(CannotOperate, match="NaN"):
        top_k(torch.tensor([1.0, math.nan, INF], dtype=dtype), count)


@pytest.mark.parametrize("count", [-1, 4])
@pytest.mark.parametrize(
    "keep",
    [lambda count: top_k(torch.zeros(3), count), lambda count: permuted_prefix(3, count, 0)],
)
def test_a_count_out_of_range_is_refused_with_both_numbers(
    keep: Callable[[int], object], count: int
) -> None:
    with pytest.raises(UsageError, match=f"{count} of 3"):
        keep(count)


def test_scores_with_a_gradient_are_ranked_and_left_as_they_are() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
    assert top_k(scores, 1).tolist() == [False, True, False]
    assert scores.tolist() == [1.0, 3.0, 2.0]


# permuted_prefix

AWKWARD = sorted({1, 2, 3, 5, *(2**k + d for k in (2, 3, 4, 10, 11) for d in (-1, 0, 1))})
sizes = st.one_of(st.sampled_from(AWKWARD), st.integers(0, 3000))
keys = st.integers(0, 2**64 - 1)


def order_of(size: int, key: int) -> list[int]:
    """The indices in the order in which a growing prefix takes them."""
    prefixes = [permuted_prefix(size, count, key) for count in range(size + 1)]
    return [int(np.flatnonzero(after & ~before)[0]) for before, after in pairwise(prefixes)]


@unhurried
@given(sizes, keys, st.data())
def test_a_prefix_has_exactly_its_count_and_lies_within_every_longer_one(
    size: int, key: int, data: st.DataObject
) -> None:
    fewer, more = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    shorter, longer = permuted_prefix(size, fewer, key), permuted_prefix(size, more, key)
    assert (shorter.sum(), longer.sum()) == (fewer, more)
    assert not (shorter & ~longer).any()


@pytest.mark.parametrize("size", AWKWARD)
def test_a_growing_prefix_takes_every_index_once(size: int) -> None:
    assert sorted(order_of(size, key=size)) == list(range(size))


def test_nothing_is_kept_of_nothing() -> None:
    assert permuted_prefix(0, 0, key=5).tolist() == []


@pytest.mark.parametrize(
    ("size", "count", "key", "digest"),
    [
        (1, 1, 0, "76be8b528d0075f7aae98d6fa57a6d3c83ae480a8469e668d7b0af968995ac71"),
        (5, 2, 1, "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9"),
        (64, 20, 2**64 - 1, "9c178c3823a5b7797731709f7ed41caaa7349181dbb7873cbb18abb020f79d9f"),
        (1024, 1000, 7, "f4d35c6614b82ff1aac8eb6a51a00fa948ac7ea8dc4ae042e02f60061b1d56eb"),
        (1025, 25, 7, "771a1589075b9f029568345c78cfc8075e953908d1002823081d8846542ab468"),
        (2047, 2000, 3, "30befabce43a0533dfed87618a4f33551efceb41ec61910cf68ece792cbb0508"),
        (65536, 656, 123456789, "bbe28192b3d83f21b043a3a9f41b40c215994e68c3e5cfd6e4239d93adfe9506"),
        (1179648, 23593, 0, "677522168b8aabec60d1a5616e05fda25a24eeffec44bd42081011642848c10d"),
    ],
)
def test_a_prefix_is_this_one_on_every_machine(
    size: int, count: int, key: int, digest: str
) -> None:
    packed = np.packbits(permuted_prefix(size, count, key))
    assert hashlib.sha256(packed.tobytes()).hexdigest() == digest


def test_a_random_mask_is_this_one_on_every_machine() -> None:
    mask = RandomRanking(seed=0).best(Weight("conv1", (64, 3, 7, 7)), 1000)
    assert hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest() == (
        "6b7026801322576dba5cff86142e3fa0e1fbe7ae7e2d8cd6f411183c5863a88d"
    )


# The draws below are fixed by their keys, so that the verdict is the same every time.


def is_even(found: Sequence[int] | np.ndarray, variance: float) -> bool:
    """Whether a fair draw would stray as far in one case of 10,000 at least (chi-square)."""
    counts = np.asarray(found, dtype=float)
    strayed = ((counts - counts.mean()) ** 2).sum() / variance
    return bool(chi2.sf(strayed, len(counts) - 1) > 1e-4)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 9, 16, 17, 1000, 1024, 1025, 2047, 2049])
def test_over_many_keys_every_index_is_kept_as_often(size: int) -> None:
    count, drawn = (size + 2) // 4, 1500
    kept = np.sum([permuted_prefix(size, count, key) for key in range(drawn)], axis=0)
    assert is_even(kept, variance=drawn * count * (size - count) / (size * (size - 1)))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_over_many_keys_every_order_comes_as_often(size: int) -> None:
    drawn = 2400
    orders = Counter(tuple(order_of(size, key)) for key in range(drawn))
    assert len(orders) == math.factorial(size)
    assert is_even([*orders.values()], variance=drawn / len(orders))


@pytest.mark.parametrize("size", [5, 6, 7, 8, 9, 13, 17])
def test_over_many_keys_every_pair_comes_first_as_often(size: int) -> None:
    drawn = 3000
    firsts = [np.flatnonzero(permuted_prefix(size, 2, key)) for key in range(drawn)]
    pairs = Counter(tuple(first.tolist()) for first in firsts)
    assert len(pairs) == math.comb(size, 2)
    assert is_even([*pairs.values()], variance=drawn / len(pairs))


@pytest.mark.parametrize("key", [11, 12])
def test_within_a_mask_no_row_column_or_place_of_the_kernel_is_preferred(key: int) -> None:
    shape = (96, 80, 3, 3)
    count = prod(shape) // 50
    mask = permuted_prefix(prod(shape), count, key).reshape(shape)
    for others in ((1, 2, 3), (0, 2, 3), (0, 1)):
        kept = mask.sum(axis=others).reshape(-1)
        assert is_even(kept, variance=count / len(kept))


@pytest.mark.parametrize("what", ["seed", "name"])
def test_masks_of_two_seeds_or_names_have_no_more_in_common_than_chance(what: str) -> None:
    size, count = 20_000, 1_000
    masks = [
        permuted_prefix(size, count, derive(index, "mask"))
        if what == "seed"
        else permuted_prefix(size, count, derive(0, "mask", f"features.{index}.weight"))
        for index in range(12)
    ]
    common = [int((a & b).sum()) for n, a in enumerate(masks) for b in masks[:n]]
    expected = count * count / size
    assert np.mean(common) == pytest.approx(expected, abs=4 * math.sqrt(expected / len(common)))
    assert max(common) < expected + 6 * math.sqrt(expected)


# select

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)
Method = Literal["uniform", "global", "er", "erk"]
allocations = st.builds(
    Allocation,
    method=st.sampled_from(["uniform", "global", "er", "erk"]),
    floor=st.one_of(st.just("channels"), st.integers(0, 4)),
    ends=st.sampled_from(["pruned", "dense"]),
)


@dataclass(frozen=True)
class Job:
    """Layers, a ranking and an allocation, with two totals that it can pay for."""

    layers: list[Weight]
    ranking: Ranking
    allocation: Allocation
    fewer: int
    more: int


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    layers = layers_of(draw(shapes))
    allocation = draw(allocations)
    least = 0
    if allocation.floor != "channels":
        least = sum(min(allocation.floor, layer.size) for layer in layers)
    totals = st.integers(least, sum(layer.size for layer in layers))
    fewer, more = sorted(draw(st.tuples(totals, totals)))
    seed = draw(st.integers(0, 1000))
    ranking: Ranking = scores_of(layers, seed, [-INF, 0.0, 0.5, 1.0, 2.0, INF])
    if allocation.method != "global" and draw(st.booleans()):
        ranking = RandomRanking(seed)
    return Job(layers, ranking, allocation, fewer, more)


@unhurried
@given(jobs())
def test_select_keeps_exactly_the_total_in_masks_of_the_weights_shapes(job: Job) -> None:
    masks = select(job.layers, job.ranking, job.allocation, job.more)
    assert masks.nnz == job.more
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        layer.weight: layer.weight_shape for layer in job.layers
    }


@unhurried
@given(jobs())
def test_fewer_weights_are_a_subset_of_more(job: Job) -> None:
    fewer = select(job.layers, job.ranking, job.allocation, job.fewer)
    assert is_nested(fewer, select(job.layers, job.ranking, job.allocation, job.more))


@unhurried
@given(jobs())
def test_no_layer_keeps_less_than_its_floor_and_dense_ends(job: Job) -> None:
    masks = select(job.layers, job.ranking, job.allocation, job.more)
    least = bounds(job.layers, job.more, job.allocation)
    assert all(
        masks.counts[layer.weight] >= floor for layer, floor in zip(job.layers, least, strict=True)
    )


@unhurried
@given(jobs())
def test_within_a_layer_the_best_are_kept(job: Job) -> None:
    masks = select(job.layers, job.ranking, job.allocation, job.more)
    for layer in job.layers:
        mask = masks[layer.weight].reshape(-1)
        assert torch.equal(mask, job.ranking.best(layer, masks.counts[layer.weight]))


@pytest.mark.parametrize("method", ["uniform", "er", "erk"])
def test_every_layer_keeps_what_the_allocation_gives_it(method: Method) -> None:
    layers = layers_of([(8, 3, 3, 3), (16, 8, 1, 1), (10, 16)])
    allocation = Allocation(method, ends="dense")
    masks = select(layers, RandomRanking(0), allocation, 450)
    assert tuple(masks.counts.values()) == allocate(layers, 450, allocation)


def test_global_keeps_the_highest_scores_of_all_layers_ties_to_the_earlier_layer() -> None:
    layers = layers_of([(2, 2), (2, 2)])
    ranking = ScoreRanking(
        {
            "layer0.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float16),
            "layer1.weight": torch.tensor([[9.0, 3.0], [3.0, -9.0]], dtype=torch.float64),
        }
    )
    masks = select(layers, ranking, Allocation("global", floor=0), 3)
    assert masks["layer0.weight"].tolist() == [[False, False], [True, True]]
    assert masks["layer1.weight"].tolist() == [[True, False], [False, False]]


def test_a_floor_is_kept_where_other_layers_score_infinity() -> None:
    layers = layers_of([(2, 2), (2, 2)])
    ranking = ScoreRanking(
        {"layer0.weight": torch.full((2, 2), INF), "layer1.weight": torch.zeros(2, 2)}
    )
    masks = select(layers, ranking, Allocation("global", floor=2), 5)
    assert masks.counts == {"layer0.weight": 3, "layer1.weight": 2}


def test_a_random_order_has_no_scores_to_compare_over_layers() -> None:
    with pytest.raises(CannotOperate, match="uniform, er or erk"):
        select(layers_of([(4, 4)]), RandomRanking(0), Allocation("global"), 3)


def test_a_total_beyond_the_layers_capacity_is_refused() -> None:
    with pytest.raises(CannotOperate, match="16"):
        select(layers_of([(4, 4)]), RandomRanking(0), Allocation(), 17)


@given(st.permutations(range(4)))
def test_a_random_mask_depends_on_its_name_only_not_on_the_other_layers(order: list[int]) -> None:
    layers = layers_of([(4, 6)] * 4)
    alone = [RandomRanking(7).best(layer, 9) for layer in layers]
    assert all(torch.equal(RandomRanking(7).best(layers[i], 9), alone[i]) for i in order)
    assert len({tuple(mask.tolist()) for mask in alone}) == 4


# Masks


def test_masks_are_counted_by_name_and_together() -> None:
    masks = Masks({"a": torch.tensor([True, False, True]), "b": torch.zeros(2, 2).bool()})
    assert masks.counts == {"a": 2, "b": 0}
    assert (masks.nnz, len(masks), list(masks)) == (2, 2, ["a", "b"])
    assert repr(masks) == "Masks(2 weights, nnz=2)"


def test_no_masks_are_none_at_all() -> None:
    assert (dict(Masks()), Masks().nnz) == ({}, 0)


def test_masks_cannot_be_given_or_lose_an_entry() -> None:
    masks: Any = Masks({"a": torch.tensor([True])})
    with pytest.raises(TypeError):
        masks["b"] = torch.tensor([True])
    with pytest.raises(TypeError):
        del masks["a"]


def test_what_happens_to_the_mapping_later_does_not_happen_to_the_masks() -> None:
    given = {"a": torch.tensor([True])}
    masks = Masks(given)
    given["b"] = torch.tensor([True])
    assert list(masks) == ["a"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_a_mask_that_is_not_bool_is_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match=rf"fc\.weight.*bool.*{dtype}"):
        Masks({"conv.weight": torch.ones(3).bool(), "fc.weight": torch.ones(3, dtype=dtype)})


def floors_first(scores: Sequence[Tensor], floors: Sequence[int], total: int) -> list[Tensor]:
    """The same choice by its definition: every layer's own best, then the best of the rest."""
    parts = [top_k(own, floor) for own, floor in zip(scores, floors, strict=True)]
    kept, merged = torch.cat(parts), torch.cat([*scores])
    kept[~kept] = top_k(merged[~kept], total - sum(floors))
    return list(kept.split([len(own) for own in scores]))


@unhurried
@given(st.data())
def test_the_global_ranking_is_floors_first_then_the_best_of_the_rest(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1))
    layers = layers_of(shapes)
    values = st.integers(-2, 3)
    scores = [
        torch.tensor(data.draw(st.lists(values, min_size=layer.size, max_size=layer.size)))
        for layer in layers
    ]
    total = data.draw(st.integers(0, sum(layer.size for layer in layers)))
    allocation = data.draw(
        st.sampled_from([Allocation("global"), Allocation("global", ends="dense")])
    )
    expected = floors_first(scores, bounds(layers, total, allocation), total)
    sizes = [layer.size for layer in layers]
    found = keep_best(layers, torch.cat(scores), sizes, allocation, total)
    assert torch.equal(found, torch.cat(expected))


def test_floors_are_paid_exactly_where_samples_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large enough for sampling, with few values, so that ties are everywhere, and with many."""
    monkeypatch.setattr("n2nfx.masks._MANY", 100)
    monkeypatch.setattr("n2nfx.masks._SAMPLE", 64)
    layers = layers_of([(40, 50), (30, 20), (60, 70), (9, 9)])
    sizes = [layer.size for layer in layers]
    generator = torch.Generator().manual_seed(0)
    for levels in (3, 50, 10**9):
        scores = [
            torch.randint(levels, (size,), generator=generator).double() * scale
            for size, scale in zip(sizes, (1.0, 0.3, 2.0, 0.0), strict=True)
        ]
        for total in (1, 60, 200, 3000, sum(sizes)):
            for allocation in (Allocation("global"), Allocation("global", ends="dense")):
                expected = floors_first(scores, bounds(layers, total, allocation), total)
                found = keep_best(layers, torch.cat(scores), sizes, allocation, total)
                assert torch.equal(found, torch.cat(expected))


@pytest.mark.parametrize("method", ["global", "uniform", "erk"])
def test_the_best_of_those_kept_before_are_the_best_of_all(method: Method) -> None:
    layers, allocation = layers_of([(4, 6), (6, 3)]), Allocation(method)
    sizes = [layer.size for layer in layers]
    scores = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0))
    more = keep_best(layers, scores, sizes, allocation, 30)
    left = [int(part.sum()) for part in more.split(sizes)]
    fewer = keep_best(layers, scores, sizes, allocation, 12)
    assert torch.equal(fewer[more], keep_best(layers, scores[more], left, allocation, 12))
    assert not fewer[~more].any()


def test_floors_are_paid_by_scores_in_bfloat16_as_in_float32() -> None:
    layers = layers_of([(8, 5), (5, 8)])
    scores = torch.cat([torch.linspace(0, 1, 40), torch.linspace(2, 3, 40)]).bfloat16()
    allocation = Allocation("global", floor=5)
    found = keep_best(layers, scores, [40, 40], allocation, 20)
    assert torch.equal(found, keep_best(layers, scores.float(), [40, 40], allocation, 20))
    assert int(found[:40].sum()) == 5
