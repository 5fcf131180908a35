"""How activations lie in their tensors: where batch, channels and places are, and what is a grid.

A place is where a layer's weight is used once: a pixel, a frame, a token. Tensors hold channels
first (B, C, *places) or last (B, *places, C; tokens have one dimension of places), the batch in
their first dimension, folded with windows or heads (B * windows, ...), or in their second where a
sequence comes first (N, B, C).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

from torch import fx

from n2nfx.tracing.ops import first_tensor, name_of
from n2nfx.tracing.tape import Spec

Places = tuple[int, ...]
_Lengths = tuple[int, int]


class Fold(NamedTuple):
    """How many of something the batch's dimension holds for each example: `outside * B * inside`.

    Two folds of one size differ where one runs over the examples first and the other last.
    """

    outside: int = 1
    inside: int = 1

    @property
    def size(self) -> int:
        """How many there are for each example."""
        return self.outside * self.inside


_UNFOLDED = Fold()


@dataclass(frozen=True)
class Misfit:
    """Why the shapes of two activations, or of one, forbid a branch."""

    reason: str


@dataclass(frozen=True)
class Layout:
    """How an activation lies in its tensor: `batch` is the dimension that holds the batch."""

    channels: int
    places: Places
    last: bool
    batch: int = 0
    fold: Fold = _UNFOLDED

    def __str__(self) -> str:
        if not self.places:
            return f"vector of {self.channels}"
        if self.last and len(self.places) == 1:
            return f"row of {self.places[0]} tokens"
        order = "last" if self.last else "first"
        return f"{size_of(self.places)} map of {self.channels} channels ({order})"


def size_of(places: Places) -> str:
    """A size as people write it: 14x14."""
    return "x".join(map(str, places)) or "1"


class Layouts:
    """The layouts of a graph's values, given that its first input has the batch first."""

    def __init__(self, graph: fx.Graph) -> None:
        spec = _pair(first_tensor(graph))
        self._batches = _lengths(spec, 0) if spec and spec[0].shape else None
        self._folds: dict[fx.Node, dict[_Lengths, Fold]] = {}
        for node in graph.nodes:
            self._folds[node] = self._find_folds(node)

    def of(self, node: fx.Node, last: bool, rank: int) -> Layout | Misfit:
        """The layout of a node's value; `rank` is how many dimensions it should have.

        A Misfit's reason is said of the value: "has no batch".
        """
        spec = _pair(node)
        if spec is None:
            return Misfit("is not one tensor")
        if len(spec[0].shape) != len(spec[1].shape):
            return Misfit("has no batch where there is one example only")
        if len(spec[1].shape) != rank:
            return Misfit(f"has {len(spec[1].shape)} dimensions where its layer gives {rank}")
        if rank < 2:
            return Misfit("has no channels")
        batch = self._batch_of(node, spec, last)
        if isinstance(batch, Misfit):
            return batch
        shape = spec[1].shape
        if batch:
            return Layout(shape[2], shape[:1], last, batch)
        channels, places = (shape[-1], shape[1:-1]) if last else (shape[1], shape[2:])
        fold = self._folds[node].get(_lengths(spec, 0), _UNFOLDED)
        return Layout(channels, places, last, batch, fold)

    def _batch_of(self, node: fx.Node, spec: tuple[Spec, Spec], last: bool) -> int | Misfit:
        """The dimension that holds the batch, of those that a branch can read."""
        held = _differing(*spec)
        if not held:
            return Misfit("is the same for every example of a batch")
        if len(held) > 1:
            return Misfit(f"has the batch in dimensions {', '.join(map(str, held))}")
        if held == [1] and last and len(spec[1].shape) == 3 and self._factor(spec, 1) == 1:
            return 1
        if held != [0]:
            return Misfit(f"has the batch in dimension {held[0]}")
        if self._factor(spec, 0) != 1 and _lengths(spec, 0) not in self._folds[node]:
            return Misfit("has the batch folded in a way that cannot be followed")
        return 0

    def _factor(self, spec: tuple[Spec, Spec], dimension: int) -> int | None:
        """How many batches a dimension holds, or None where it is no multiple of the batch."""
        if self._batches is None:
            return None
        lengths = _lengths(spec, dimension)
        factor = lengths[1] // self._batches[1]
        return factor if lengths == (factor * self._batches[0], factor * self._batches[1]) else None

    def _find_folds(self, node: fx.Node) -> dict[_Lengths, Fold]:
        """What the dimensions of a node's value that hold several batches are folded from.

        They are known by their lengths at the two batches, wherever they are moved to.
        """
        reads = node.all_input_nodes
        spec = _pair(node)
        if spec is None:
            return {lengths: fold for read in reads for lengths, fold in self._folds[read].items()}
        folds: dict[_Lengths, Fold | None] = {}
        for dimension in _differing(*spec):
            if (self._factor(spec, dimension) or 1) > 1:
                found = (self._fold_from(read, spec, dimension) for read in reads)
                fold = next((fold for fold in found if fold is not None), None)
                folds[_lengths(spec, dimension)] = fold
        return {lengths: fold for lengths, fold in folds.items() if fold is not None}

    def _fold_from(self, read: fx.Node, made: tuple[Spec, Spec], dimension: int) -> Fold | None:
        """How a dimension of a value made from `read` is folded: as there, or by a reshape.

        A reshape keeps the order of the elements: as many steps of the new dimension lead to the
        next example as the elements of one example's part are more than those of one step.
        """
        lengths = _lengths(made, dimension)
        if lengths in self._folds[read]:
            return self._folds[read][lengths]
        spec = _pair(read)
        if spec is None or [prod(one.shape) for one in spec] != [prod(one.shape) for one in made]:
            return None
        held = _differing(*spec)
        if len(held) != 1 or not prod(made[1].shape):
            return None
        batches = _lengths(spec, held[0])
        before = _UNFOLDED if batches == self._batches else self._folds[read].get(batches)
        inside = Fraction(prod(spec[1].shape[held[0] + 1 :]), prod(made[1].shape[dimension + 1 :]))
        outside = lengths[1] / (batches[1] * inside)
        if before is None or inside.denominator != 1 or outside.denominator != 1:
            return None
        return Fold(int(outside) * before.outside, before.inside * int(inside))


def _pair(node: fx.Node) -> tuple[Spec, Spec] | None:
    """The specs of a node whose value is one tensor, at both batches, or None."""
    spec = node.meta.get("spec")
    one_tensor = isinstance(spec, tuple) and all(isinstance(one, Spec) for one in spec)
    return spec if one_tensor else None  # type: ignore[return-value]


def _lengths(spec: tuple[Spec, Spec], dimension: int) -> _Lengths:
    """How long a dimension is at the two batches."""
    return spec[0].shape[dimension], spec[1].shape[dimension]


def _differing(small: Spec, large: Spec) -> list[int]:
    """The dimensions that hold the batch."""
    sizes = zip(small.shape, large.shape, strict=False)
    return [dimension for dimension, (one, other) in enumerate(sizes) if one != other]


class Grid(NamedTuple):
    """Places that tokens stand for, and how many tokens come before them that stand for none."""

    places: Places
    prefix: int = 0


class Grids:
    """Which rows of tokens are grids of places, by what the network itself does.

    A count is a grid where a convolution has a map of as many places, or one of half the size, a
    quarter, and so on. It has a prefix (class and register tokens) where tokens were concatenated
    before such a grid. `whole` are the places of the network's input.
    """

    def __init__(
        self, maps: Iterable[Places], joined: Mapping[int, tuple[int, int]], whole: Places
    ) -> None:
        self._maps: dict[tuple[int, int], Places] = {}
        self._known: set[Places] = set()
        for places in maps:
            self._add(places)
        self._joined = joined
        self._whole = whole

    def _add(self, places: Places) -> None:
        while places not in self._known:
            self._known.add(places)
            self._maps.setdefault((len(places), prod(places)), places)
            places = tuple(-(-size // 2) for size in places)

    def of(self, count: int, rank: int, like: Places | None = None) -> Grid | None:
        """The grid of `count` tokens in so many dimensions: `like`, if it is as many places."""
        if like and prod(like) == count:
            return Grid(like)
        places = self._maps.get((rank, count))
        if places is not None:
            return Grid(places)
        if count not in self._joined:
            return None
        prefix, rest = self._joined[count]
        inner = self.of(rest, rank, like)
        return inner and Grid(inner.places, inner.prefix + prefix)

    def both(self, one: int, other: int) -> tuple[Grid, Grid] | None:
        """The grids of two counts of tokens, of the same rank."""
        for rank in (2, 3):
            first, second = self.of(one, rank), self.of(other, rank)
            if first and second:
                return first, second
        return None

    def is_map(self, places: Places) -> bool:
        """Whether places are each a part of the input, and not windows, heads or queries.

        The input's size is then a multiple of theirs, rounded up.
        """
        if places in self._known:
            return True
        return len(places) == len(self._whole) and all(
            size > 0 and -(-whole // -(-whole // size)) == size
            for size, whole in zip(places, self._whole, strict=True)
        )


def joined_tokens(graph: fx.Graph) -> dict[int, tuple[int, int]]:
    """Token counts that a concatenation gives, as (tokens before the last part, the last part)."""
    joined: dict[int, tuple[int, int]] = {}
    for node in graph.nodes:
        spec = _pair(node)
        if spec is None or len(spec[1].shape) != 3 or name_of(node) not in _CONCATENATIONS:
            continue
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        last = _pair(parts[-1]) if isinstance(parts, list | tuple) and parts else None
        if dimension in (1, -2) and last is not None:
            count, rest = spec[1].shape[1], last[1].shape[1]
            joined.setdefault(count, (count - rest, rest))
    return joined


_CONCATENATIONS = ("cat", "concat", "concatenate")
