"""Budgets and allocations: exact sums, bounds, and nobody loses a weight when the total grows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import prod
from random import Random
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from n2nfx.budget import (
    Allocation,
    Ends,
    Floor,
    Method,
    Split,
    allocate,
    apportion,
    bounds,
    budget,
    split,
)
from n2nfx.errors import CannotOperate, UsageError

unhurried = settings(deadline=None)

Problem = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # weights, lower, upper


@dataclass(frozen=True)
class Shape:
    """A layer as allocation sees it: (out, in / groups, *kernel)."""

    weight_shape: tuple[int, ...]
    groups: int = 1
    name: str = "layer"

    @property
    def size(self) -> int:
        return prod(self.weight_shape)

    @property
    def channels(self) -> int:
        return max(self.weight_shape[:2]) * self.groups


def apportion_unit_by_unit(
    weights: Sequence[int], total: int, lower: Sequence[int], upper: Sequence[int]
) -> tuple[int, ...]:
    """The definition, as slow as it is plain."""
    counts = list(lower)
    for _ in range(total - sum(lower)):
        takers = [i for i in range(len(counts)) if counts[i] < upper[i]]
        taker = max(takers, key=lambda i: (Fraction(weights[i], 2 * counts[i] + 1), -i))
        counts[taker] += 1
    return tuple(counts)


def every_unit_is_well_placed(problem: Problem, counts: Sequence[int]) -> bool:
    """The same definition without the way: no unit given ranks below a unit refused.

    Equal ranks are two units of one entry of weight 0.
    """
    weights, lower, upper = problem
    entries = range(len(counts))
    given_last = [
        (Fraction(weights[i], 2 * counts[i] - 1), -i) for i in entries if counts[i] > lower[i]
    ]
    refused = [
        (Fraction(weights[i], 2 * counts[i] + 1), -i) for i in entries if counts[i] < upper[i]
    ]
    return not given_last or not refused or min(given_last) >= max(refused)


@st.composite
def problems(draw: st.DrawFn, largest: int = 12, most: int = 6) -> Problem:
    """Small weights, so that equal quotients and zeros are common."""
    entry = st.tuples(
        st.integers(0, largest), st.integers(0, largest), st.integers(0, largest)
    ).map(lambda e: (e[0], min(e[1:]), max(e[1:])))
    entries = draw(st.lists(entry, min_size=1, max_size=most))
    weights, lower, upper = zip(*entries, strict=True)
    return weights, lower, upper


def totals(problem: Problem) -> range:
    return range(sum(problem[1]), sum(problem[2]) + 1)


shapes = st.builds(  # more groups than channels too: the floor must not exceed the weights
    Shape,
    weight_shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    groups=st.integers(1, 3),
    name=st.just("layer"),
)
networks = st.lists(shapes, min_size=1, max_size=5)
floors = st.one_of(st.just("channels"), st.integers(0, 4))
countable = [method for method in get_args(Method) if method != "global"]
allocations = st.builds(
    Allocation,
    method=st.sampled_from(countable),
    floor=floors,
    ends=st.sampled_from(get_args(Ends)),
)


def sizes(layers: Sequence[Shape]) -> tuple[int, ...]:
    return tuple(layer.size for layer in layers)


def required(layers: Sequence[Shape], floor: Floor) -> tuple[int, ...]:
    return tuple(0 if floor == "channels" else min(floor, layer.size) for layer in layers)


def possible_totals(layers: Sequence[Shape], allocation: Allocation) -> range:
    return range(sum(required(layers, allocation.floor)), sum(sizes(layers)) + 1)


# budget


@unhurried
@given(density=st.floats(0, 1, exclude_min=True), total=st.integers(1, 10**9))
@example(density=0.5, total=1)
@example(density=1e-9, total=3_333_333)
def test_budget_is_the_rounded_product_or_says_which_density_keeps_one(
    density: float, total: int
) -> None:
    expected = round(density * total)
    if expected:
        assert budget(density, total) == expected
        return
    with pytest.raises(UsageError) as error:
        budget(density, total)
    suggested = float(str(error.value).split()[-3])
    assert budget(suggested, total) == 1


def test_budget_of_the_whole_is_the_whole() -> None:
    assert budget(1, 25_502_912) == 25_502_912
    assert budget(0.02, 25_502_912) == 510_058


@pytest.mark.parametrize("density", [0, 0.0, -1, 1.5, float("nan"), float("inf")])
def test_budget_refuses_a_density_outside_its_range(density: float) -> None:
    with pytest.raises(UsageError, match=f"above 0 and at most 1, not {density}"):
        budget(density, 100)


@pytest.mark.parametrize("density", [True, "0.5", None, 1j])
def test_budget_refuses_what_is_no_number(density: Any) -> None:
    with pytest.raises(UsageError, match="density must be a number, not "):
        budget(density, 100)


def test_budget_takes_any_real_number() -> None:
    third: Any = Fraction(1, 3)
    assert budget(third, 30) == 10


def test_budget_of_a_32_bit_density_is_not_computed_in_32_bits() -> None:
    density: Any = np.float32(0.1)
    assert budget(density, 10**9 + 1) == round(float(density) * (10**9 + 1)) == 100_000_002
    assert split(10**9 + 1, density).skip == 100_000_002


def test_budget_refuses_an_empty_network() -> None:
    with pytest.raises(UsageError, match="at least one weight"):
        budget(0.5, 0)


# split


@unhurried
@given(whole=st.integers(0, 10**9), ratio=st.floats(0, 1, exclude_max=True))
def test_split_is_exact(whole: int, ratio: float) -> None:
    parts = split(whole, ratio)
    assert parts.skip == round(ratio * whole)
    assert parts.sequential + parts.skip == whole
    assert min(parts.sequential, parts.skip) >= 0


def test_split_without_skips_leaves_all_to_the_layers() -> None:
    assert split(1001, 0) == Split(sequential=1001, skip=0)


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, float("nan")])
def test_split_refuses_a_ratio_outside_its_range(ratio: float) -> None:
    with pytest.raises(UsageError, match=f"at least 0 and below 1, not {ratio}"):
        split(100, ratio)


def test_split_refuses_what_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="ratio must be a number"):
        split(100, False)
    with pytest.raises(UsageError, match="at least 0"):
        split(-1, 0.5)


# apportion


@unhurried
@given(problem=problems())
@example(problem=((0, 0, 0), (0, 1, 0), (3, 3, 3)))
@example(problem=((0, 5, 0), (0, 0, 1), (2, 4, 2)))
@example(problem=((3, 1, 3, 1), (0, 0, 0, 0), (9, 9, 9, 9)))
def test_apportion_is_the_unit_by_unit_method(problem: Problem) -> None:
    weights, lower, upper = problem
    for total in totals(problem):
        expected = apportion_unit_by_unit(weights, total, lower, upper)
        assert apportion(weights, total, lower, upper) == expected


@unhurried
@given(problem=problems())
def test_apportion_is_exact_within_bounds_and_nobody_loses_when_the_total_grows(
    problem: Problem,
) -> None:
    weights, lower, upper = problem
    results = [apportion(weights, total, lower, upper) for total in totals(problem)]
    assert [sum(counts) for counts in results] == list(totals(problem))
    assert results[0] == lower
    assert results[-1] == upper
    for smaller, larger in pairwise(results):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))


def test_apportion_gives_ties_to_the_lower_index() -> None:
    assert apportion((7, 7, 7), 4, (0, 0, 0), (9, 9, 9)) == (2, 1, 1)
    assert apportion((7, 7, 7), 5, (0, 0, 0), (9, 9, 9)) == (2, 2, 1)
    # 1 / (2*0 + 1) = 3 / (2*1 + 1): equal quotients of unequal weights.
    assert apportion((1, 3), 2, (0, 0), (9, 9)) == (1, 1)
    assert apportion((3, 1), 2, (0, 0), (9, 9)) == (2, 0)


def test_apportion_tells_quotients_apart_that_are_equal_as_floats() -> None:
    assert apportion((10**20, 10**20 + 1), 1, (0, 0), (9, 9)) == (0, 1)


def test_apportion_serves_a_zero_weight_last_and_by_index() -> None:
    assert apportion((0, 1, 0), 5, (0, 0, 0), (2, 5, 2)) == (0, 5, 0)
    assert apportion((0, 1, 0), 8, (0, 0, 0), (2, 5, 2)) == (2, 5, 1)
    assert apportion((0, 0), 10**12 + 1, (0, 0), (10**12, 10**12)) == (10**12, 1)


def test_apportion_with_loose_bounds_is_sainte_lague() -> None:
    # 53,000 / 5 = 10,600 takes the 5th seat, 24,000 / 3 and 23,000 / 3 the next two.
    votes = (53_000, 24_000, 23_000)
    assert apportion(votes, 8, (0, 0, 0), (8, 8, 8)) == (4, 2, 2)
    assert apportion(votes, 7, (0, 0, 0), (8, 8, 8)) == (3, 2, 2)


def test_apportion_of_nothing_among_nobody_is_empty() -> None:
    assert apportion((), 0, (), ()) == ()


# A loop over the units would never come to the end of these totals.
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    entries=st.integers(1, 60),
    largest=st.sampled_from([1, 3, 10**4, 10**9, 10**21]),
    part=st.integers(0, 1000),
)
def test_apportion_of_a_huge_total_gives_no_unit_to_the_wrong_entry(
    seed: int, entries: int, largest: int, part: int
) -> None:
    random = Random(seed)
    weights = tuple(random.randint(0, largest) for _ in range(entries))
    pairs = [sorted((random.randint(0, 10**15), random.randint(0, 10**15))) for _ in weights]
    lower, upper = zip(*pairs, strict=True)
    total = sum(lower) + (sum(upper) - sum(lower)) * part // 1000

    counts = apportion(weights, total, lower, upper)
    assert sum(counts) == total
    assert all(low <= n <= high for low, n, high in zip(lower, counts, upper, strict=True))
    assert every_unit_is_well_placed((weights, lower, upper), counts)


@pytest.mark.parametrize("weight_of", [lambda i: 1 + i * i, lambda i: 1])
def test_apportion_of_a_billion_among_3000_is_exact_and_takes_one_more_unit(weight_of: Any) -> None:
    weights = tuple(weight_of(i) for i in range(3000))
    lower, upper = (1,) * 3000, (10**6,) * 3000
    counts = apportion(weights, 10**9, lower, upper)
    more = apportion(weights, 10**9 + 1, lower, upper)
    assert sum(counts) == 10**9
    assert every_unit_is_well_placed((weights, lower, upper), counts)
    assert sorted(b - a for a, b in zip(counts, more, strict=True)) == [0] * 2999 + [1]


@pytest.mark.parametrize("total", [2, 12])
def test_apportion_refuses_a_total_outside_the_bounds_and_names_both(total: int) -> None:
    with pytest.raises(CannotOperate, match=f"{total} among 2: .* need 3 .* allow 11"):
        apportion((1, 1), total, (1, 2), (5, 6))


@pytest.mark.parametrize(
    ("weights", "lower", "upper"),
    [((-1,), (0,), (5,)), ((1,), (-1,), (5,)), ((1,), (3,), (2,)), ((1, 1), (0,), (5, 5))],
)
def test_apportion_refuses_bounds_that_are_none(
    weights: tuple[int, ...], lower: tuple[int, ...], upper: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match=r"entry 0 must|2 weights need as many bounds"):
        apportion(weights, 2, lower, upper)


# Allocation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "unifrom"}, "allocation method .* did you mean uniform"),
        ({"method": None}, "allocation method must be one of uniform, global, er, erk, not None"),
        ({"floor": "chanels"}, "floor .* did you mean channels"),
        ({"floor": -1}, "floor must be an integer >= 0 or 'channels', not -1"),
        ({"floor": 1.5}, "floor must be an integer"),
        ({"floor": True}, "floor must be an integer"),
        ({"ends": "dens"}, "ends .* did you mean dense"),
    ],
)
def test_allocation_refuses_unknown_values_and_names_the_nearest(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Allocation(**arguments)


# allocate and bounds


@unhurried
@given(layers=networks, allocation=allocations, data=st.data())
def test_allocate_is_exact_and_within_its_bounds(
    layers: list[Shape], allocation: Allocation, data: st.DataObject
) -> None:
    possible = possible_totals(layers, allocation)
    total = data.draw(st.integers(possible.start, possible.stop - 1))
    counts = allocate(layers, total, allocation)
    lower = bounds(layers, total, allocation)
    assert sum(counts) == total
    assert all(low <= n <= high for low, n, high in zip(lower, counts, sizes(layers), strict=True))
    least = required(layers, allocation.floor)
    assert all(low <= n for low, n in zip(least, lower, strict=True))


@unhurried
@given(layers=networks, allocation=allocations, density=st.floats(0.01, 1), ratio=st.floats(0, 0.9))
def test_a_density_and_a_ratio_reach_the_layers_exactly(
    layers: list[Shape], allocation: Allocation, density: float, ratio: float
) -> None:
    affordable = Allocation(allocation.method, "channels", allocation.ends)
    whole = sum(sizes(layers))
    kept = max(1, round(density * whole))
    parts = split(kept, ratio)
    assert sum(allocate(layers, parts.sequential, affordable)) + parts.skip == kept


# METHOD: masks of the same scores are nested only if this holds through the scaled-down floors too.
@settings(deadline=None, max_examples=60)
@given(layers=networks, allocation=allocations)
def test_nobody_loses_a_weight_when_the_total_grows_by_one(
    layers: list[Shape], allocation: Allocation
) -> None:
    for rule in (allocate, bounds):
        results = [rule(layers, total, allocation) for total in possible_totals(layers, allocation)]
        for smaller, larger in pairwise(results):
            assert all(a <= b for a, b in zip(smaller, larger, strict=True))


@unhurried
@given(layers=networks, ends=st.sampled_from(get_args(Ends)))
def test_bounds_that_can_be_paid_are_what_is_desired(layers: list[Shape], ends: Ends) -> None:
    whole = sum(sizes(layers))
    lower = bounds(layers, whole, Allocation(floor="channels", ends=ends))
    for i, (layer, low) in enumerate(zip(layers, lower, strict=True)):
        whole_layer = ends == "dense" and i in (0, len(layers) - 1)
        assert low == (layer.size if whole_layer else min(layer.channels, layer.size))


def test_bounds_that_cannot_be_paid_scale_down_evenly_and_spend_everything() -> None:
    layers = [Shape((100, 100)), Shape((200, 2)), Shape((300, 50))]
    assert bounds(layers, 600, Allocation()) == (100, 200, 300)
    assert bounds(layers, 60, Allocation()) == (10, 20, 30)
    assert allocate(layers, 60, Allocation()) == (10, 20, 30)
    assert bounds(layers, 0, Allocation()) == (0, 0, 0)


def test_bounds_keep_the_required_floor_while_dense_ends_scale_down() -> None:
    layers = [Shape((4, 5)), Shape((10, 10)), Shape((4, 5))]
    allocation = Allocation(floor=3, ends="dense")
    assert bounds(layers, 43, allocation) == (20, 3, 20)
    assert bounds(layers, 23, allocation) == (10, 3, 10)
    assert bounds(layers, 9, allocation) == (3, 3, 3)


def test_dense_ends_are_whole_inside_the_same_budget() -> None:
    layers = [Shape((8, 3)), Shape((50, 50)), Shape((50, 50)), Shape((2, 8))]
    counts = allocate(layers, 1040, Allocation(floor=0, ends="dense"))
    assert counts == (24, 500, 500, 16)


def test_the_global_method_has_bounds_but_no_counts() -> None:
    layers = [Shape((8, 3)), Shape((50, 50))]
    allocation = Allocation(method="global")
    assert bounds(layers, 100, allocation) == (8, 50)
    with pytest.raises(UsageError, match="ranks the scores"):
        allocate(layers, 100, allocation)


def test_uniform_gives_every_layer_the_same_density() -> None:
    layers = [Shape((10, 10)), Shape((30, 10, 3, 3)), Shape((10, 200))]
    assert allocate(layers, 480, Allocation(floor=0)) == (10, 270, 200)


def test_er_by_hand() -> None:
    # (n_in + n_out) * kernel: (16 + 4) * 9 = 180, (32 + 16) * 9 = 432, 10 + 32 = 42.
    layers = [Shape((16, 4, 3, 3)), Shape((32, 16, 3, 3)), Shape((10, 32))]
    assert allocate(layers, 654, Allocation("er", 0)) == (180, 432, 42)
    assert allocate(layers, 327, Allocation("er", 0)) == (90, 216, 21)


def test_erk_by_hand() -> None:
    # n_in + n_out + kernel sides: 16 + 4 + 6 = 26, 32 + 16 + 6 = 54, 10 + 32 = 42.
    layers = [Shape((16, 4, 3, 3)), Shape((32, 16, 3, 3)), Shape((10, 32))]
    assert allocate(layers, 122, Allocation("erk", 0)) == (26, 54, 42)
    assert allocate(layers, 610, Allocation("erk", 0)) == (130, 270, 210)
    # 42/122 of 1220 is more than the last layer's 320 weights: what it cannot take, the others do.
    assert allocate(layers, 1220, Allocation("erk", 0)) == (293, 607, 320)


@pytest.mark.parametrize("method", countable)
def test_a_weight_of_one_dimension_is_a_layer_like_any_other(method: Method) -> None:
    assert allocate([Shape((6,)), Shape((6,))], 6, Allocation(method, 0)) == (3, 3)


def test_no_layers_share_nothing() -> None:
    assert allocate([], 0, Allocation(ends="dense")) == ()


@unhurried
@given(layers=networks, floor=st.integers(1, 200), data=st.data())
def test_an_unaffordable_integer_floor_names_the_largest_that_is_possible(
    layers: list[Shape], floor: int, data: st.DataObject
) -> None:
    needed = sum(required(layers, floor))
    total = data.draw(st.integers(0, needed - 1))
    with pytest.raises(CannotOperate) as error:
        allocate(layers, total, Allocation(floor=floor))
    message = str(error.value)
    numbers = [int(number) for number in re.findall(r"\d+", message)]
    *said, largest = numbers
    assert said == [floor, len(layers), needed, total]

    assert sum(allocate(layers, total, Allocation(floor=largest))) == total
    with pytest.raises(CannotOperate):
        allocate(layers, total, Allocation(floor=largest + 1))


@pytest.mark.parametrize("total", [-1, 101])
@pytest.mark.parametrize("rule", [allocate, bounds])
def test_a_total_outside_the_capacity_is_refused_with_what_is_possible(
    rule: Any, total: int
) -> None:
    with pytest.raises(CannotOperate, match="from 0 to 100 is possible"):
        rule([Shape((10, 10))], total, Allocation())
