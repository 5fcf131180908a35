"""Operations that only move values about, followed by letting them move numbers.

Reshaping, permuting, slicing, concatenating and padding are done once to a tensor that holds, at
every position, the number of its channel: where the numbers end up is where the channels do. No
rule has to know what `view(b, -1, 2, c)` or `x[..., ::2]` means.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
class _Numbers:
    """The operands of a move, as tensors of the numbers of their channels; 0 is none."""

    values: tuple[Value, ...]
    firsts: tuple[int, ...]

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


def move(loom: Loom, values: Sequence[Value], run: Run, stacked: bool = False) -> Any:
    """The values that a move makes of the given ones.

    `run` does it, given what tells the numbers of a value's channels, and gives tensors; so does
    this, with a `Value` for each. Tokens that come from two operands differ in where they come
    from only, and that makes no channels of them, unless operands are `stacked`. Raises
    `Unfollowed` where numbers cannot be moved so.
    """
    known = tuple(dict.fromkeys(value for value in values if value.number is not None))
    sizes = [loom.size(value) for value in known]
    numbers = _Numbers(known, tuple(1 + sum(sizes[:index]) for index in range(len(sizes))))
    if sum(sizes) >= _EXACT:
        raise Unfollowed
    moved = _run(run, numbers)
    if isinstance(moved, Tensor):
        return _value(loom, numbers, moved, stacked)
    return [_value(loom, numbers, part, stacked) for part in moved]


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


def _value(loom: Loom, numbers: _Numbers, moved: Tensor, stacked: bool) -> Value:
    """The value whose channels are where the numbers are."""
    shape = tuple(moved.shape)
    if moved.dtype != torch.float32:  # the same bits taken for something else
        raise Unfollowed
    if not moved.numel():
        return Value(None, shape)
    repeated = tuple(slice(None if stride else 1) for stride in moved.stride())
    found, axes = _apart(moved[repeated].numpy())
    parts = list(_by_operand(loom, numbers, found))
    if len(parts) > 1 and not stacked:
        axes = sorted({axis for _, part in parts for axis in _apart(part)[1]}) or axes
    if not parts:
        return Value(None, shape)
    if prod(shape[axis] for axis in axes) > _MOST:
        raise Unfollowed
    others = tuple(axis for axis in range(found.ndim) if axis not in axes)
    links = [(value, part.max(axis=others).ravel()) for value, part in parts]
    for value, sources in links:
        if np.array_equal(sources, np.arange(1, 1 + loom.size(value))) and len(links) == 1:
            return Value(value.number, shape, tuple(axes))  # the same channels at other places
    made = loom.make(shape, axes)
    for value, sources in links:
        targets = np.flatnonzero(sources)
        loom.link(made, value, Pairs(targets, sources[targets] - 1))
    return made


def _by_operand(
    loom: Loom, numbers: _Numbers, found: np.ndarray
) -> Iterator[tuple[Value, np.ndarray]]:
    """The numbers of each operand that is there, from 1 on, and 0 elsewhere."""
    for value, first in zip(numbers.values, numbers.firsts, strict=True):
        own = (found >= first) & (found < first + loom.size(value))
        if own.any():
            yield value, np.where(own, found - first + 1, 0).astype(np.int64)


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
