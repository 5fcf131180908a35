"""Values of a graph while its channels are mapped: where a tensor's channels lie, and what joins
them.

A tensor's channels lie along some of its axes: those along which it can depend on different
things. Along all other axes (the batch, the places of a map) it depends on the same. A value is
thus a grid of channels, which shape operations move about, reductions shrink, broadcasting joins.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from n2nfx.connectivity.relations import Every, Link, Pairs, Relation, numbered


@dataclass(frozen=True)
class Value:
    """One tensor: its shape, and the axes, ascending, along which its channels differ.

    `number` is its place in the map, or None for a constant, which nothing leads to.
    """

    number: int | None
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()

    @property
    def grid(self) -> tuple[int, ...]:
        """Numbers of channels along its axes."""
        return tuple(self.shape[axis] for axis in self.axes)


class Loom:
    """Makes values and the links between them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.links: list[Link] = []
        self.moves: dict[Hashable, Any] = {}  # those that were made, by their form

    def make(self, shape: Sequence[int], axes: Sequence[int]) -> Value:
        """A value that depends on nothing yet; axes of one position are none."""
        kept = tuple(axis for axis in axes if shape[axis] != 1)
        self.sizes.append(prod(shape[axis] for axis in kept))
        return Value(len(self.sizes) - 1, tuple(shape), kept)

    def link(self, target: Value, source: Value, relation: Relation) -> None:
        """Let a value depend on another; on a constant nothing depends."""
        if target.number is not None and source.number is not None:
            self.links.append(Link(target.number, source.number, relation))

    def hub(self, shape: Sequence[int], sources: Sequence[Value]) -> Value:
        """A value that depends on all of every source alike."""
        made = self.make(shape, ())
        for source in sources:
            self.link(made, source, Every())
        return made

    def reduced(self, value: Value, dims: Sequence[int], keep: bool = True) -> Value:
        """A value summed up over some of its dimensions, which are kept with size 1, or not."""
        gone = {dim % len(value.shape) for dim in dims}
        shape = [1 if dim in gone else size for dim, size in enumerate(value.shape)]
        left = replace(value, shape=tuple(shape))
        if gone & set(value.axes):
            left = self.make(shape, [axis for axis in value.axes if axis not in gone])
            places = tuple(shape[axis] for axis in value.axes)
            targets = np.broadcast_to(numbered(places), value.grid)
            self.link(left, value, Pairs(targets.ravel(), np.arange(targets.size)))
        return left if keep else _without(left, gone)

    def joined(self, values: Sequence[Value], shape: Sequence[int]) -> Value:
        """What an operation gives that meets its operands position by position, broadcast."""
        moved = [_aligned(value, shape) for value in values if value.number is not None]
        axes = sorted({axis for value in moved for axis in value.axes})
        if len(moved) == 1 and moved[0].shape == tuple(shape):
            return moved[0]
        made = self.make(shape, axes)
        for value in moved:
            places = tuple(value.shape[axis] if axis in value.axes else 1 for axis in made.axes)
            sources = np.broadcast_to(numbered(places), made.grid).ravel()
            self.link(made, value, Pairs(np.arange(sources.size), sources))
        return made


def _without(value: Value, gone: set[int]) -> Value:
    """A value without dimensions that no channels lie along."""
    left = [dim for dim in range(len(value.shape)) if dim not in gone]
    axes = tuple(left.index(axis) for axis in value.axes)
    return replace(value, shape=tuple(value.shape[dim] for dim in left), axes=axes)


def _aligned(value: Value, shape: Sequence[int]) -> Value:
    """A value with as many dimensions as it is broadcast to."""
    more = len(shape) - len(value.shape)
    own = (*(1 for _ in range(more)), *value.shape)
    return replace(value, shape=own, axes=tuple(axis + more for axis in value.axes))


def broadcasts(value: Value, shape: Sequence[int]) -> bool:
    """Whether a value can be broadcast to a shape."""
    own = value.shape[::-1]
    fits = zip(own, reversed(shape), strict=False)
    return len(own) <= len(shape) and all(size in (1, wanted) for size, wanted in fits)
