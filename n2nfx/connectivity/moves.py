"""Operations that only move values about, followed by letting them move numbers.

Reshaping, permuting, slicing, concatenating and padding are done once to a tensor that holds, at
every position, the number of its channel: where the numbers end up is where the channels do. No
rule has to know what `view(b, -1, 2, c)` or `x[..., ::2]` means. What every block of a network does
alike is done once.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from n2nfx.connectivity.relations import Pairs, numbered
from n2nfx.connectivity.values import Loom, Value

_MOST = 2**20  # channels of one value: more are places that were mistaken for channels
_EXACT = 2**24  # whole numbers that single precision tells apart


# What torch says to what it does with other numbers only.
_REFUSED = (RuntimeError, TypeError, ValueError, IndexError)


class Unfollowed(Exception):
    """A move that numbers cannot follow."""


@dataclass(frozen=True)
class _Moved:
    """One tensor that a move gives: where its channels lie, and which of each operand's they are.

    `same` says that they are those of its one operand in order; with no `links` it is a constant.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    links: tuple[tuple[int, Pairs], ...] = ()
    same: bool = False


@dataclass(frozen=True)
class _Numbers:
    """The operands of a move, as tensors of the numbers of their channels; 0 is none."""

    values: tuple[Value, ...]
    firsts: tuple[int, ...]  # one more than there are operands

    def of(self, value: Value) -> Tensor:
        """Without memory for more than its channels, which most views are content with."""
        if value.number is None:
            return torch.zeros((), dtype=torch.float32, device="cpu").expand(value.shape)
        places = [size if axis in value.axes else 1 for axis, size in enumerate(value.shape)]
        numbers = numbered(value.grid).reshape(places) + self.firsts[self.values.index(value)]
        return torch.from_numpy(numbers).float().expand(value.shape)

    def laid_out(self, value: Value) -> Tensor:
        """In memory position by position, as some views need it."""
        return self.of(value).contiguous()


Run = Callable[[Callable[[Value], Tensor]], Any]


def move(
    loom: Loom, values: Sequence[Value], run: Run, stacked: bool = False, key: Hashable = None
) -> Any:
    """The values that a move makes of the given ones.

    `run` does it, given what tells the numbers of a value's channels, and gives tensors; so does
    this, with a `Value` for each. Tokens that come from two operands differ in where they come
    from only, and that makes no channels of them, unless operands are `stacked`. Moves with the
    same `key` do the same to operands of the same form. Raises `Unfollowed` where numbers cannot
    be moved so.
    """
    known = tuple(dict.fromkeys(value for value in values if value.number is not None))
    form = (key, stacked, *((value.shape, value.axes) for value in known))
    moved = loom.moves.get(form)
    if moved is None:
        moved = _followed(known, run, stacked)
        if key is not None:
            loom.moves[form] = moved
    if isinstance(moved, _Moved):
        return _woven(loom, known, moved)
    return [_woven(loom, known, part) for part in moved]


def _woven(loom: Loom, known: Sequence[Value], moved: _Moved) -> Value:
    """The value of what a move gives of known operands, linked to them."""
    if not moved.links:
        return Value(None, moved.shape)
    if moved.same:
        return Value(known[moved.links[0][0]].number, moved.shape, moved.axes)
    made = loom.make(moved.shape, moved.axes)
    for operand, pairs in moved.links:
        loom.link(made, known[operand], pairs)
    return made


def _followed(known: tuple[Value, ...], run: Run, stacked: bool) -> _Moved | list[_Moved]:
    """What a move gives of known operands."""
    firsts = tuple(accumulate((prod(value.grid) for value in known), initial=1))
    if firsts[-1] > _EXACT:
        raise Unfollowed
    moved = _run(run, _Numbers(known, firsts))
    if isinstance(moved, Tensor):
        return _read(moved, firsts, stacked)
    return [_read(part, firsts, stacked) for part in moved]


def _run(run: Run, numbers: _Numbers) -> Any:
    with torch.no_grad():
        try:
            return run(numbers.of)
        except _REFUSED:
            pass
        try:
            return run(numbers.laid_out)
        except _REFUSED as error:
            raise Unfollowed from error


def _read(moved: Tensor, firsts: Sequence[int], stacked: bool) -> _Moved:
    """Where the channels are: where the numbers are."""
    shape = tuple(moved.shape)
    if moved.dtype != torch.float32:  # the same bits taken for something else
        raise Unfollowed
    if not moved.numel():
        return _Moved(shape)
    repeated = tuple(slice(None if stride else 1) for stride in moved.stride())
    found, axes = _apart(moved[repeated].numpy())
    parts = dict(_by_operand(firsts, found))
    if len(parts) > 1 and not stacked:
        axes = sorted({axis for part in parts.values() for axis in _apart(part)[1]}) or axes
    if not parts:
        return _Moved(shape)
    if prod(shape[axis] for axis in axes) > _MOST:
        raise Unfollowed
    others = tuple(axis for axis in range(found.ndim) if axis not in axes)
    links = {operand: part.max(axis=others).ravel() for operand, part in parts.items()}
    (first, sources), *more = links.items()
    in_order = np.arange(1, 1 + firsts[first + 1] - firsts[first])
    same = not more and np.array_equal(sources, in_order)
    return _Moved(shape, tuple(axes), tuple((o, _pairs(s)) for o, s in links.items()), same)


def _pairs(sources: np.ndarray) -> Pairs:
    """Which channels there are, where each place has the number of one, from 1 on, or 0."""
    targets = np.flatnonzero(sources)
    return Pairs(targets, sources[targets] - 1)


def _by_operand(firsts: Sequence[int], found: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The numbers of each operand that is there, from 1 on, and 0 elsewhere."""
    for operand, (first, end) in enumerate(pairwise(firsts)):
        own = (found >= first) & (found < end)
        if own.any():
            yield operand, np.where(own, found - first + 1, 0).astype(np.int64)


def _apart(found: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The axes along which numbers differ, and the numbers with all others shrunk to one place.

    None beside some (padding, a learned token beside those of the input) is no difference.
    """
    axes = []
    for axis in range(found.ndim):
        largest = found.max(axis=axis, keepdims=True)
        if ((found == largest) | (found == 0)).all():
            found = largest
        else:
            axes.append(axis)
    return found, axes
