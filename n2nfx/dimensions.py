"""What the dimensions of a value are made of: rows, columns, windows of them, heads.

Windows of a map are a part of its rows beside a part of its columns. A value's dimensions, each a
tuple of parts, say which place every element stands for, however it lies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, NamedTuple

Shape = tuple[int, ...]


class Change(NamedTuple):
    """What was done to a whole line: rolled by one number, or padded by two, before and behind."""

    how: Literal["roll", "pad"]
    by: tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """A direction of a grid of places, the `number`th of `rank`, with what padding added.

    A row of tokens is a grid of rank 1. `changes` are what was done since the grid was made.
    """

    number: int
    rank: int
    length: int
    changes: tuple[Change, ...] = ()

    @property
    def places(self) -> int:
        """How long it was before it was padded."""
        return self.length - sum(sum(by) for how, by in self.changes if how == "pad")

    def rolled(self, by: int) -> "Line":
        """The line rolled, or as it was before if that rolls it back."""
        if not self.changes or self.changes[-1].how != "roll":
            return replace(self, changes=(*self.changes, Change("roll", (by,))))
        *before, last = self.changes
        total = (last.by[0] + by) % self.length
        return replace(self, changes=(*before, *((Change("roll", (total,)),) if total else ())))

    def padded(self, by: tuple[int, int]) -> "Line":
        """The line with places before and behind."""
        changes = (*self.changes, Change("pad", by))
        return replace(self, length=self.length + sum(by), changes=changes)


class Part(NamedTuple):
    """A part of a dimension: `size` steps along a line, each over `step` of its places.

    Or examples, or whatever else is no place: channels, heads, keys.
    """

    line: Line | Literal["batch", "other"]
    size: int
    step: int = 1


Dimension = tuple[Part, ...]  # the last part runs fastest; none where the dimension is 1 long
Dimensions = tuple[Dimension, ...]


def length_of(parts: Iterable[Part]) -> int:
    """How long a dimension of these parts is."""
    return prod(part.size for part in parts)


def lines_of(dimensions: Iterable[Dimension]) -> set[Line]:
    """The lines that dimensions have parts of."""
    return {part.line for parts in dimensions for part in parts if isinstance(part.line, Line)}


def is_whole(parts: Sequence[Part]) -> bool:
    """Whether parts, in this order, are one line."""
    if not parts or isinstance(parts[0].line, str):
        return False
    reach = parts[0].line.length
    for part in parts:
        if part.line != parts[0].line or part.size * part.step != reach:
            return False
        reach = part.step
    return reach == 1


def is_grid(parts: Sequence[Part]) -> bool:
    """Whether parts, in this order, are all lines of one grid, whole and unchanged; or none."""
    lines = [part.line for part in parts if isinstance(part.line, Line)]
    numbers = [(line.number, line.rank) for line in lines if not line.changes]
    whole = all(is_whole([part]) for part in parts)
    return whole and numbers == [(at, len(parts)) for at in range(len(parts))]


def line_of(parts: Dimension) -> Line | None:
    """The line that a dimension is, whole and in order."""
    (line, *_), *others = parts or (Part("other", 1),)
    return line if isinstance(line, Line) and not others and is_whole(parts) else None


# Dimensions that are made anew


def other(length: int) -> Dimension:
    """Something that is no place."""
    return (Part("other", length),) if length > 1 else ()


def whole(line: Line) -> Dimension:
    """A line in one dimension."""
    return (Part(line, line.length),) if line.length > 1 else ()


def grid(places: Sequence[int]) -> Dimensions:
    """The lines of a grid."""
    rank = len(places)
    return tuple(whole(Line(number, rank, length)) for number, length in enumerate(places))


# What dimensions become


def resized(before: Dimensions, shape: Shape) -> Dimensions:
    """Where another length means that a grid was sampled anew; of all else nothing is known."""
    pairs = zip(before, shape, strict=True)
    return tuple(
        parts if length_of(parts) == size else sampled(parts, size) for parts, size in pairs
    )


def sampled(parts: Dimension, length: int) -> Dimension:
    """A grid with other places, a row with other tokens, one of several batches."""
    if [part.line for part in parts] == ["other", "batch"] and parts[1].size == length:
        return parts[1:]
    if _is_row(parts):
        return grid((length,))[0]
    line = line_of(parts)
    return other(length) if line is None or line.changes else whole(replace(line, length=length))


def cropped(parts: Dimension, start: int, length: int, step: int = 1) -> Dimension:
    """Every nth place is a sample; of a padded line what there was before can be taken."""
    line = line_of(parts)
    if _is_row(parts) or line is None:
        return sampled(parts, length)
    if line.changes and line.changes[-1] == ("pad", (start, line.length - start - length)):
        return whole(replace(line, length=length, changes=line.changes[:-1]))
    return sampled(parts, length) if 0 <= start < step > 1 else other(length)


def lengthened(parts: Dimension, length: int) -> Dimension:
    """Several batches, or a row with more tokens."""
    times = length // max(length_of(parts), 1)
    if [part.line for part in parts] == ["batch"] and times * length_of(parts) == length:
        return *other(times), *parts
    return grid((length,))[0] if _is_row(parts) else other(length)


def _is_row(parts: Dimension) -> bool:
    """Whether a dimension is a row of tokens, or a map that was laid out as one."""
    rank = {line.rank for line in lines_of([parts])}
    return is_grid(parts) and rank == {len(parts)}


def reshaped(before: Dimensions, shape: Shape) -> Dimensions | None:
    """The parts in their order, cut where a new dimension ends within one."""
    left = [part for parts in before for part in parts]
    made: list[Dimension] = []
    for size in shape:
        taken: list[Part] = []
        while length_of(taken) < size:
            cut = _split(left.pop(0), size // length_of(taken)) if left else None
            if cut is None:
                return None
            taken.append(cut[0])
            left = [*cut[1:], *left]
        made.append(_merged(taken))
    return None if left else tuple(made)


def _split(part: Part, size: int) -> tuple[Part, ...] | None:
    """A part, or its two halves where it is more than `size`; None where it does not divide."""
    if size % part.size == 0:
        return (part,)
    if part.size % size or part.line == "batch":
        return None
    inner = part.size // size
    return Part(part.line, size, part.step * inner), Part(part.line, inner, part.step)


def _merged(parts: Sequence[Part]) -> Dimension:
    """Parts of a line that follow each other are one."""
    made: list[Part] = []
    for part in parts:
        if made and made[-1].line == part.line and made[-1].step == part.step * part.size:
            part = Part(part.line, made.pop().size * part.size, part.step)
        made.append(part)
    return tuple(made)


def coarser(dimensions: Dimensions) -> Dimensions:
    """Parts of a line are parts of a shorter one where none of them takes single places."""
    parts = [part for dimension in dimensions for part in dimension]
    finest = {
        line: 1 if line.changes else min(part.step for part in parts if part.line == line)
        for line in lines_of(dimensions)
    }

    def scaled(part: Part) -> Part:
        if isinstance(part.line, str):
            return part
        by = finest[part.line]
        line = replace(part.line, length=part.line.length // by)
        return Part(line, part.size, part.step // by)

    return tuple(tuple(map(scaled, parts)) for parts in dimensions)


def once(dimensions: Iterable[Dimension]) -> Dimensions:
    """The same places a second time are no places: the keys of an attention."""
    made: list[Dimension] = []
    for parts in dimensions:
        known = {part for dimension in made for part in dimension if part.line != "other"}
        made.append(other(length_of(parts)) if known & set(parts) else parts)
    return tuple(made)
