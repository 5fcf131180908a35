"""How a value that is folded (windows, heads) is brought to a map of its places, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from n2nfx.dimensions import Dimensions, Line, Part, Shape, is_whole
from n2nfx.network import Move


@dataclass(frozen=True)
class Unfolding:
    """The moves that bring a value to a map of its places, channels last, and such a map back.

    What the value has beside places (heads, keys) is averaged there, and all alike on the way back.
    """

    places: Shape
    there: tuple[Move, ...]
    back: tuple[Move, ...]


def unfolding(dimensions: Dimensions, channels: int) -> Unfolding | None:
    """How a value with its channels in one dimension unfolds; None where places are missing."""
    groups = [parts or (Part("other", 1),) for parts in dimensions]
    groups[channels] = (Part("other", prod(part.size for part in groups[channels])),)
    parts = [part for group in groups for part in group]
    channel = sum(map(len, groups[:channels]))
    batch = [at for at, part in enumerate(parts) if part.line == "batch"]
    others = [at for at, part in enumerate(parts) if part.line == "other" and at != channel]
    lines = _lines(parts)
    if len(batch) != 1 or not _are_grid(lines, parts):
        return None
    whole = [parts[line[0]].line for line in lines]
    order = (*batch, *others, *(at for line in lines for at in line), channel)
    sizes = [tuple(_size(part) for part in group) for group in groups]
    cut = [tuple(parts[at].size for at in line) for line in lines]
    beside = tuple(parts[at].size for at in others)
    there = (*_cut(sizes, 0), *_permuted(order), *_averaged(beside), *_joined(cut, 1))
    back = (*_cut(cut, 1), *_repeated(beside, len(order)), *_permuted(_inverse(order)))
    return Unfolding(
        places=tuple(line.places for line in whole),  # type: ignore[union-attr]
        there=(*there, *_undone(whole)),  # type: ignore[arg-type]
        back=(*_redone(whole), *back, *_joined(sizes, 0)),  # type: ignore[arg-type]
    )


def _size(part: Part) -> int:
    """How long a part is, as a reshape is told it."""
    return -1 if part.line == "batch" else part.size


def _lines(parts: Sequence[Part]) -> list[list[int]]:
    """Where the parts of every line are, from its widest steps to its single places."""
    lines: dict[Line, list[int]] = {}
    for at, part in enumerate(parts):
        if isinstance(part.line, Line):
            lines.setdefault(part.line, []).append(at)
    ordered = sorted(lines, key=lambda line: line.number)
    return [sorted(lines[line], key=lambda at: -parts[at].step) for line in ordered]


def _are_grid(lines: Sequence[Sequence[int]], parts: Sequence[Part]) -> bool:
    """Whether lines are all those of one grid, and whole; or there are none."""
    known = [parts[line[0]].line for line in lines]
    numbers = [(line.number, line.rank) for line in known if isinstance(line, Line)]
    whole = all(is_whole([parts[at] for at in line]) for line in lines)
    return whole and numbers == [(at, len(lines)) for at in range(len(lines))]


def _cut(groups: Sequence[Shape], first: int) -> tuple[Move, ...]:
    """Cut dimensions from `first` on into groups of so many."""
    return tuple(
        Move("unflatten", (at, *group))
        for at, group in reversed(list(enumerate(groups, first)))
        if len(group) > 1
    )


def _joined(groups: Sequence[Shape], first: int) -> tuple[Move, ...]:
    """Join groups of so many dimensions, from `first` on."""
    return tuple(
        Move("flatten", (at, at + len(group) - 1))
        for at, group in enumerate(groups, first)
        if len(group) > 1
    )


def _permuted(order: Shape) -> tuple[Move, ...]:
    return () if order == tuple(range(len(order))) else (Move("permute", order),)


def _inverse(order: Shape) -> Shape:
    return tuple(order.index(at) for at in range(len(order)))


def _averaged(beside: Shape) -> tuple[Move, ...]:
    """Without the dimensions right behind the first."""
    return (Move("mean", tuple(range(1, 1 + len(beside)))),) if beside else ()


def _repeated(beside: Shape, rank: int) -> tuple[Move, ...]:
    """With dimensions of these sizes right behind the first, and the same in all of them."""
    if not beside:
        return ()
    rest = (-1,) * (rank - 1 - len(beside))
    return (*(Move("unsqueeze", (1,)),) * len(beside), Move("broadcast_to", (-1, *beside, *rest)))


def _undone(lines: Sequence[Line]) -> tuple[Move, ...]:
    """From lines as they were changed to those of the grid, in a map with its channels last."""
    moves: list[Move] = []
    for at, line in enumerate(lines, 1):
        length = line.length
        for change in reversed(line.changes):
            if change.how == "roll":
                moves.append(Move("roll", (-change.by[0], at)))
            else:
                length -= sum(change.by)
                moves.append(Move("narrow", (at, change.by[0], length)))
    return tuple(moves)


def _redone(lines: Sequence[Line]) -> tuple[Move, ...]:
    """From the lines of the grid to lines as they were changed."""
    moves: list[Move] = []
    for at, line in enumerate(lines, 1):
        behind = (0, 0) * (len(lines) + 1 - at)
        for change in line.changes:
            roll = change.how == "roll"
            by = (change.by[0], at) if roll else (*behind, *change.by)
            moves.append(Move(change.how, by))
    return tuple(moves)
