"""How the channels of a network's values depend on each other: numbers only, numpy and no torch.

A *value* is a tensor of the graph, and its channels are the positions at which it can carry
something else than at others. Links say which channels of one value depend on which of another.
"""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np


class Relation(Protocol):
    """Which channels of a target depend on which of a source."""

    def forward(self, reached: np.ndarray, size: int) -> np.ndarray:
        """Which of the target's `size` channels depend on a reached channel of the source."""
        ...

    def backward(self, needed: np.ndarray, size: int) -> np.ndarray:
        """On which of the source's `size` channels a needed channel of the target depends."""
        ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """Channel `targets[i]` depends on channel `sources[i]`, for every i."""

    targets: np.ndarray
    sources: np.ndarray

    @property
    def is_function(self) -> bool:
        """Whether no channel depends on two."""
        return _are_apart(self.targets)

    @property
    def is_whole(self) -> bool:
        """Whether no channel of the source is at several of the target."""
        return _are_apart(self.sources)

    def forward(self, reached: np.ndarray, size: int) -> np.ndarray:
        return _marked(self.targets[reached[self.sources]], size)

    def backward(self, needed: np.ndarray, size: int) -> np.ndarray:
        return _marked(self.sources[needed[self.targets]], size)


def _marked(places: np.ndarray, size: int) -> np.ndarray:
    marked = np.zeros(size, dtype=bool)
    marked[places] = True
    return marked


@dataclass(frozen=True)
class Every:
    """Every channel of the target depends on every channel of the source."""

    def forward(self, reached: np.ndarray, size: int) -> np.ndarray:
        return np.full(size, reached.any())

    def backward(self, needed: np.ndarray, size: int) -> np.ndarray:
        return np.full(size, needed.any())


@dataclass(frozen=True, eq=False)
class Weighted:
    """A channel depends on those that a kept weight joins it to.

    `weight` is the weight's name, empty where it is not prunable; `part` tells apart the calls
    that use other parts of it, and is empty where all of it is used. `counts` says how many kept
    weights each entry of its first two dimensions has: (out, in / groups), or (in, out / groups)
    where the convolution is `transposed`.
    """

    weight: str
    part: str
    counts: np.ndarray
    groups: int
    transposed: bool

    @property
    def _joined(self) -> np.ndarray:
        """Whether channels are joined at all, as (groups, out / groups, in / groups).

        Made anew each time: kept for all weights it would be as much memory as the counts.
        """
        return by_group(self.counts != 0, self.groups, self.transposed)

    def forward(self, reached: np.ndarray, size: int) -> np.ndarray:
        return (self._joined & reached.reshape(self.groups, 1, -1)).any(axis=2).reshape(size)

    def backward(self, needed: np.ndarray, size: int) -> np.ndarray:
        return (self._joined & needed.reshape(self.groups, -1, 1)).any(axis=1).reshape(size)

    def between(self, reached: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """Which entries lead from a reached to a needed channel, laid out as the weight is."""
        ends = needed.reshape(self.groups, -1, 1) & reached.reshape(self.groups, 1, -1)
        if self.transposed:
            ends = ends.swapaxes(1, 2)
        return ends.reshape(self.counts.shape)


@dataclass(frozen=True, eq=False)
class Link:
    """How the channels of value `target` depend on those of value `source`, both by number."""

    target: int
    source: int
    relation: Relation


@dataclass(frozen=True, eq=False)
class ChannelMap:
    """The channels of all values of a network, and how they depend on each other.

    `sizes` are the values' numbers of channels; every link's source comes before its target is
    read. `inputs` and `outputs` are the network's own, by number. `hubs` names the operations
    whose outputs are taken to depend on everything they read, since no rule says it better: what
    is reached is an upper bound where there are any. `names` says what made each value, `tables`
    which of the inputs are none of the network's, but what a layer reads that depends on nothing.
    """

    sizes: tuple[int, ...]
    links: tuple[Link, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    hubs: tuple[str, ...]
    names: tuple[str, ...]
    tables: frozenset[int]


def _are_apart(places: np.ndarray) -> bool:
    """Whether no place is named twice. (Counting is much quicker than `np.unique`.)"""
    return bool((np.bincount(places) <= 1).all())


def by_group(entries: np.ndarray, groups: int, transposed: bool) -> np.ndarray:
    """A matrix laid out as a layer's weight is, as (groups, out / groups, in / groups)."""
    grouped = entries.reshape(groups, -1, entries.shape[1])
    return grouped.swapaxes(1, 2) if transposed else grouped


def numbered(grid: tuple[int, ...]) -> np.ndarray:
    """The channels of a grid in their order, as an array of that shape."""
    return np.arange(prod(grid)).reshape(grid)
