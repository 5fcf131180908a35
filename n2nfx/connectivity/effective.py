"""Which kept weights lie on a path from an input to an output; boolean reach, numpy and no torch.

Direct density counts kept weights. A weight whose input no path reaches, or whose output no path
leaves, is kept for nothing: *effective* density counts the others only (Vysogorets and Kempe,
Connectivity Matters, 2021).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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

    `channels` are the output channels of its layer, `dead` those that no path leads through. Of a
    layer inside a module that is called whole, all kept weights count as effective if any are, and
    no channels.
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
    output at all; where none does, `cut` names the layers that paths lead to, and not through.
    `hubs` are operations that are not followed channel by channel: with any, effective counts are
    upper bounds and dead ones lower.
    """

    layers: tuple[EffectiveRow, ...]
    skips: tuple[EffectiveRow, ...]
    size: int
    connected: bool
    hubs: tuple[str, ...]
    cut: tuple[str, ...] = ()

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
    connected = any(reached[output].any() for output in channels.outputs)
    found = _Found(reached, needed, connected)
    for link in channels.links:
        found.add(link)
    return Effective(
        layers=tuple(map(found.row, layers)),
        skips=tuple(map(found.row, skips)),
        size=size,
        connected=connected,
        hubs=channels.hubs,
        cut=() if connected else tuple(_ends(channels, reached, (*layers, *skips))),
    )


def _ends(
    channels: ChannelMap, reached: Sequence[np.ndarray], weights: Iterable[Counted]
) -> Iterator[str]:
    """The layers that are reached, and reach nothing."""
    ends = {
        link.relation.weight
        for link in channels.links
        if isinstance(link.relation, Weighted)
        and reached[link.source].any()
        and not reached[link.target].any()
    }
    return (counted.name for counted in weights if counted.weight in ends)


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

    def __init__(
        self, reached: list[np.ndarray], needed: list[np.ndarray], connected: bool
    ) -> None:
        self._reached = reached
        self._needed = needed
        self._connected = connected
        self._calls: dict[str, list[Link]] = {}
        self._alive: dict[str, dict[tuple[str, int], np.ndarray]] = {}

    def add(self, link: Link) -> None:
        """Take in one call of a weight; other links have none."""
        relation = link.relation
        if not isinstance(relation, Weighted) or not relation.weight:
            return
        name, alive = relation.weight, self._reached[link.target] & self._needed[link.target]
        self._calls.setdefault(name, []).append(link)
        _unite(self._alive.setdefault(name, {}), (relation.part, alive.size), alive)

    def row(self, counted: Counted) -> EffectiveRow:
        """The row of one weight. What a module called whole does with its own is not known."""
        name, kept = counted.weight, counted.kept
        if name not in self._calls:
            return EffectiveRow(counted.name, name, kept, kept if self._connected else 0, 0, 0)
        alive = self._alive[name].values()
        return EffectiveRow(
            name=counted.name,
            weight=name,
            kept=kept,
            effective=min(kept, self._effective(name)),
            channels=sum(channels.size for channels in alive),
            dead=sum(int(channels.size - channels.sum()) for channels in alive),
        )

    def _effective(self, name: str) -> int:
        """The kept weights that any call uses between a reached and a needed channel."""
        counts: dict[str, np.ndarray] = {}
        used: dict[str, np.ndarray] = {}
        for link in self._calls[name]:
            relation = link.relation
            assert isinstance(relation, Weighted)
            counts[relation.part] = relation.counts
            between = relation.between(self._reached[link.source], self._needed[link.target])
            _unite(used, relation.part, between)
        return sum(int((counts[part] * of).sum()) for part, of in used.items())


def _unite(found: dict[Any, np.ndarray], key: Any, more: np.ndarray) -> None:
    found[key] = found[key] | more if key in found else more
