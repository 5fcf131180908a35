"""Whether numbers stand in the order of those printed, where their values cannot be the same."""

from collections.abc import Hashable, Mapping
from itertools import combinations
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Figure(NamedTuple):
    """A computed number, and what it may be wrong by."""

    value: float
    error: float = 0.0


class Agreement(NamedTuple):
    """How many pairs stand as printed, of how many there are."""

    agreeing: int
    pairs: int

    def __str__(self) -> str:
        return f"{self.agreeing}/{self.pairs}"


def agrees(printed: tuple[float, float], ours: tuple[Figure, Figure]) -> bool:
    """Whether the first stands to the second as printed.

    Two figures that are no further apart than their errors stand in no order, and agree with none.
    """
    (first, second), (one, other) = printed, ours
    if abs(one.value - other.value) <= one.error + other.error:
        return first == second
    return (first < second) == (one.value < other.value) and first != second


def agreement(printed: Mapping[Key, float], ours: Mapping[Key, Figure]) -> Agreement:
    """Over every pair of keys that both have."""
    pairs = list(combinations([key for key in ours if key in printed], 2))
    agreeing = sum(
        agrees((printed[one], printed[other]), (ours[one], ours[other])) for one, other in pairs
    )
    return Agreement(agreeing, len(pairs))
