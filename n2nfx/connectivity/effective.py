"""Which kept weights lie on a path from an input to an output; boolean reach, numpy and no torch.

Direct density counts kept weights. A weight whose input no path reaches, or whose output no path
leaves, is kept for nothing: *effective* density counts the others only (Vysogorets and Kempe,
Connectivity Matters, 2021).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from n2nfx.connectivity.relations import ChannelMap, Link, Weighted


class Counted(Protocol):
    """A weight to be counted: its name, that of its layer, and how many weights it keeps."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> str: ...
    @property
    def kept(self) -> int: ...


@dataclass(frozen=True)
class EffectiveRow:
    """One weight: how many of its entries are kept, and how many of these lie on a path.

    `channels` are the output channels of its layer, `dead` those that no path leads through.
    """

    name: str
    weight: str
    kept: int
    effective: int
    channels: int
    dead: int


@dataclass(frozen=True)
class Effective:
    """What a network's paths make of its kept weights.

    `layers` and `skips` have a row for each weight, in the ledger's order; `size` is N. A channel
    of a layer is dead when no path of kept weights leads from an input through it to an output,
    whatever a skip or a residual adds behind it. The channels of skips are not counted: a branch
    adds connections, no neurons. `connected` says whether any path leads from an input to an
    output at all. `hubs` are operations that are not followed channel by channel: with any,
    effective counts are upper bounds and dead ones lower.
    """

    layers: tuple[EffectiveRow, ...]
    skips: tuple[EffectiveRow, ...]
    size: int
    connected: bool
    hubs: tuple[str, ...]

    @property
    def effective_nnz(self) -> int:
        """Kept weights that lie on a path, those of the skips included."""
        return sum(row.effective for row in (*self.layers, *self.skips))

    @property
    def effective_density(self) -> float:
        """Effective weights over N; 1 where there are none to keep."""
        return self.effective_nnz / self.size if self.size else 1.0

    @property
    def channels(self) -> int:
        """Output channels of all layers."""
        return sum(row.channels for row in self.layers)

    @property
    def dead_channels(self) -> int:
        """Output channels of layers that no path leads through."""
        return sum(row.dead for row in self.layers)

    @property
    def empty_layers(self) -> tuple[str, ...]:
        """Layers that keep no weight."""
        return tuple(row.name for row in self.layers if row.kept == 0)


def follow(
    channels: ChannelMap, layers: Sequence[Counted], skips: Sequence[Counted], size: int
) -> Effective:
    """The effective weights and dead channels of the layers and skips of a network of N = `size`.

    Time is linear in the number of weights.
    """
    reached, needed = _reached(channels), _needed(channels)
    found = _Found(reached, needed)
    for link in channels.links:
        found.add(link)
    return Effective(
        layers=tuple(map(found.row, layers)),
        skips=tuple(map(found.row, skips)),
        size=size,
        connected=any(reached[output].any() for output in channels.outputs),
        hubs=channels.hubs,
    )


def _reached(channels: ChannelMap) -> list[np.ndarray]:
    """For every value, which of its channels an input leads to."""
    reached = _all_at(channels.sizes, channels.inputs)
    for link in channels.links:
        found = link.relation.forward(reached[link.source], channels.sizes[link.target])
        reached[link.target] |= found
    return reached


def _needed(channels: ChannelMap) -> list[np.ndarray]:
    """For every value, which of its channels lead to an output."""
    needed = _all_at(channels.sizes, channels.outputs)
    for link in reversed(channels.links):
        found = link.relation.backward(needed[link.target], channels.sizes[link.source])
        needed[link.source] |= found
    return needed


def _all_at(sizes: Sequence[int], places: Iterable[int]) -> list[np.ndarray]:
    marked = [np.zeros(size, dtype=bool) for size in sizes]
    for place in places:
        marked[place][:] = True
    return marked


class _Found:
    """What the calls of each weight make of it together: a weight may be used more than once."""

    def __init__(self, reached: list[np.ndarray], needed: list[np.ndarray]) -> None:
        self._reached = reached
        self._needed = needed
        self._counts: dict[str, np.ndarray] = {}
        self._used: dict[str, np.ndarray] = {}
        self._alive: dict[str, dict[int, np.ndarray]] = {}

    def add(self, link: Link) -> None:
        """Take in one call of a weight; other links have none."""
        relation = link.relation
        if not isinstance(relation, Weighted) or relation.weight is None:
            return
        name, target = relation.weight, link.target
        used = relation.between(self._reached[link.source], self._needed[target])
        alive = self._reached[target] & self._needed[target]
        by_size = self._alive.setdefault(name, {})
        self._counts[name] = relation.counts
        self._used[name] = used | self._used[name] if name in self._used else used
        by_size[alive.size] = alive | by_size[alive.size] if alive.size in by_size else alive

    def row(self, counted: Counted) -> EffectiveRow:
        """The row of one weight."""
        name = counted.weight
        alive = self._alive[name].values()
        return EffectiveRow(
            name=counted.name,
            weight=name,
            kept=counted.kept,
            effective=int((self._counts[name] * self._used[name]).sum(dtype=np.int64)),
            channels=sum(channels.size for channels in alive),
            dead=sum(int(channels.size - channels.sum()) for channels in alive),
        )
