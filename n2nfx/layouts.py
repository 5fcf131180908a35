"""How activations lie in their tensors: where batch, channels and places are, and what is a grid.

A place is where a layer's weight is used once: a pixel, a frame, a token. Tensors hold channels
first (B, C, *places) or last (B, *places, C; tokens have one dimension of places), the batch in
their first dimension, folded with windows or heads (B * windows, ...), or in their second where a
sequence comes first (N, B, C).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

from torch import fx

from n2nfx.dimensions import Dimensions, is_grid
from n2nfx.following import Followed
from n2nfx.network import Move
from n2nfx.tracing.ops import first_tensor, name_of
from n2nfx.tracing.tape import Spec
from n2nfx.unfolding import unfolding

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
    """How an activation lies in its tensor: `batch` is the dimension that holds the batch.

    The tensor itself, or what the moves `there` make of it; `back` are those the other way.
    `unfolded` is the layout as a map of all its places, if it is folded and that is known.
    """

    channels: int
    places: Places
    last: bool
    batch: int = 0
    fold: Fold = _UNFOLDED
    there: tuple[Move, ...] = ()
    back: tuple[Move, ...] = ()
    unfolded: "Layout | None" = field(default=None, compare=False)

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
    """The layouts of a graph's values, given that its first input has the batch first.

    `last` says whether that has its channels last.
    """

    def __init__(self, module: fx.GraphModule, graph: fx.Graph, last: bool = False) -> None:
        self._followed = Followed(module, graph, last)
        spec = _pair(first_tensor(graph))
        self._batches = _lengths(spec, 0) if spec and spec[0].shape else None

    def of(self, node: fx.Node, last: bool, rank: int) -> Layout | Misfit:
        """The layout of a node's value; `rank` is how many dimensions it should have.

        A Misfit's reason is said of the value: "has no batch".
        """
        found, unfolded = self._as_it_lies(node, last, rank), self._unfolded(node, last, rank)
        if unfolded is None:
            return found
        return unfolded if isinstance(found, Misfit) else replace(found, unfolded=unfolded)

    def _unfolded(self, node: fx.Node, last: bool, rank: int) -> Layout | None:
        """The layout of a folded value as a map, where it can be followed."""
        dimensions = self._followed.of(node)
        if dimensions is None or not 2 <= len(dimensions) == rank:
            return None
        channels = rank - 1 if last else 1
        if _lies_open(dimensions, channels):
            return None
        moves = unfolding(dimensions, channels)
        size = _pair(node)[1].shape[channels]  # type: ignore[index]
        return moves and Layout(size, moves.places, True, there=moves.there, back=moves.back)

    def _as_it_lies(self, node: fx.Node, last: bool, rank: int) -> Layout | Misfit:
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
        fold = _UNFOLDED if self._factor(spec, 0) == 1 else self._fold(node)
        if fold is None:
            return Misfit("has the batch folded in a way that cannot be followed")
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
        return 0

    def _factor(self, spec: tuple[Spec, Spec], dimension: int) -> int | None:
        """How many batches a dimension holds, or None where it is no multiple of the batch."""
        if self._batches is None:
            return None
        lengths = _lengths(spec, dimension)
        factor = lengths[1] // self._batches[1]
        return factor if lengths == (factor * self._batches[0], factor * self._batches[1]) else None

    def _fold(self, node: fx.Node) -> Fold | None:
        """How the first dimension of a node's value is folded, None where that is not known."""
        parts = (self._followed.of(node) or ((),))[0]
        at = next((at for at, part in enumerate(parts) if part.line == "batch"), None)
        if at is None:
            return None
        outside, inside = ([part.size for part in side] for side in (parts[:at], parts[at + 1 :]))
        return Fold(prod(outside), prod(inside))


def _lies_open(dimensions: Dimensions, channels: int) -> bool:
    """Whether there are the examples, then the places of a map in their order, and no more."""
    first, *rest = [parts for at, parts in enumerate(dimensions) if at != channels]
    examples = [part.line for part in first] == ["batch"]
    short = not all(rest) and any(rest)
    return examples and not short and is_grid([part for parts in rest for part in parts])


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
        rank = len(spec[1].shape) if spec else 0
        if spec is None or rank < 3 or name_of(node) not in _CONCATENATIONS:
            continue
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        last = _pair(parts[-1]) if isinstance(parts, list | tuple) and parts else None
        if dimension in (rank - 2, -2) and last is not None:
            count, rest = spec[1].shape[-2], last[1].shape[-2]
            if count != rest:  # or nothing was joined
                joined.setdefault(count, (count - rest, rest))
    return joined


_CONCATENATIONS = ("cat", "concat", "concatenate")
