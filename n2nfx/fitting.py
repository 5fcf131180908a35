"""The branch whose shapes meet exactly, from one layout to another: integers only.

A branch that keeps the places and ends in a linear layer is linear, in the target's own layout.
Every other works on maps with their channels first: it is strided where the sizes divide, else (or
always, if that is asked for) the source is averaged to the target's size; to a larger one, which
gives every place the nearest of the source. What is left to do before and after are moves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from n2nfx.layouts import Grid, Grids, Layout, Misfit, Places, size_of
from n2nfx.network import Move

Kernel = int | Literal["target"]
Resolution = Literal["stride", "pool"]
Matching = Resolution | Literal["shrink"]  # the last: the branch's output is max-pooled


@dataclass(frozen=True)
class Fit:
    """What a branch is, its ends aside; the fields are those of `Skip`."""

    kind: Literal["conv", "linear"]
    weight_shape: tuple[int, ...]
    places: Places
    fold: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    pool: Places | None = None
    before: tuple[Move, ...] = ()
    after: tuple[Move, ...] = ()
    shrink: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Meeting:
    """The grids that both ends are seen as: places of one rank, the tokens before them aside."""

    source: Grid
    target: Grid


def fit(
    reads: Layout,
    writes: Layout,
    grids: Grids,
    own: tuple[int, ...] | None,
    kernel: Kernel,
    resolution: Matching = "stride",
) -> Fit | Misfit:
    """The branch from a layout to another; `own` is the target's kernel, None if it is linear.

    Both ends are taken as they lie where they are folded alike, else unfolded. What fits in no
    other way is read across, or averaged over all that the target does not have.
    """
    misfits: list[Misfit] = []
    for source, target in _views(reads, writes):
        found = _fit(source, target, grids, own, kernel, resolution)
        if isinstance(found, Fit):
            before, after = (*source.there, *found.before), (*found.after, *target.back)
            return replace(found, before=before, after=after)
        misfits.append(found)
    return misfits[0]


def _views(reads: Layout, writes: Layout) -> Iterator[tuple[Layout, Layout]]:
    """How the two ends can be seen, the best first."""
    if _folded_alike(reads, writes):
        yield reads, writes
    ends = (reads, writes)
    source, target = (_open(end) if _open(end).places else end for end in ends)
    yield _as_map(source, target), target
    if _reads_across(reads, writes):
        yield _across(reads), writes
    source, target = map(_open, ends)
    yield _as_map(source, target), target


def _open(end: Layout) -> Layout:
    return end.unfolded or end


def _folded_alike(reads: Layout, writes: Layout) -> bool:
    """Whether the same elements of both ends are the same places."""
    one, other = reads.unfolded, writes.unfolded
    if one is None or other is None:
        return one is other
    return (one.there, reads.places) == (other.there, writes.places)


def _as_map(reads: Layout, writes: Layout) -> Layout:
    """A vector is a map of one place."""
    if reads.places or not writes.places:
        return reads
    ones = (1,) * len(writes.places)
    there = (*reads.there, Move("unflatten", (1, reads.channels, *ones)))
    return replace(reads, places=ones, last=False, there=there)


def _reads_across(reads: Layout, writes: Layout) -> bool:
    """Whether the channels of a row of tokens are what the target has as places (a mixer's)."""
    rows = all(end.last and len(end.places) == 1 and not end.batch for end in (reads, writes))
    return rows and reads.fold == writes.fold and writes.places == (reads.channels,)


def _across(reads: Layout) -> Layout:
    """A row of tokens with tokens for channels."""
    moves = (Move("transpose", (1, 2)),)
    return Layout(reads.places[0], (reads.channels,), last=True, fold=reads.fold, there=moves)


def _fit(
    reads: Layout,
    writes: Layout,
    grids: Grids,
    own: tuple[int, ...] | None,
    kernel: Kernel,
    resolution: Matching,
) -> Fit | Misfit:
    unfit = _unfit_folds(reads, writes)
    if unfit is not None:
        return unfit
    if resolution == "shrink" and reads.places != writes.places:
        return _shrinking(reads, writes, own or (), kernel)
    if not writes.places:
        return _onto_vector(reads, writes)
    meeting = _meet(reads, writes, grids)
    if isinstance(meeting, Misfit):
        return meeting
    seen, met = meeting.source.places, meeting.target.places
    plain = kernel in ("target", 1) or len(writes.places) == 1 or not grids.is_map(writes.places)
    if own is None and seen == met and plain:
        return _linear(reads, writes, meeting)
    if len(met) > 3:
        return Misfit(f"{size_of(met)} places are too many dimensions for a convolution")
    return _convolution(reads, writes, meeting, own or (), kernel, resolution)


def _unfit_folds(reads: Layout, writes: Layout) -> Misfit | None:
    """Why the batch's dimension is not the same at both ends, or None."""
    source, target = reads.fold.size, writes.fold.size
    if source != target:
        both = f"{_folded(source)} at the source and {_folded(target)} at the target"
        return Misfit(f"the batch is {both}")
    if reads.fold != writes.fold:
        return Misfit(f"the batch is {_folded(source)} at both ends, in different orders")
    if source > 1 and reads.places != writes.places:
        sizes = f"{size_of(reads.places)} places inside do not become {size_of(writes.places)}"
        return Misfit(f"the batch is {_folded(source)}, and {sizes}")
    return None


def _folded(times: int) -> str:
    return f"folded {times} times" if times > 1 else "not folded"


def _meet(reads: Layout, writes: Layout, grids: Grids) -> _Meeting | Misfit:
    """How both ends are seen with the same number of dimensions."""
    seen, met = reads.places, writes.places
    as_they_are = _Meeting(Grid(seen), Grid(met))
    if seen == met or (len(seen) == len(met) and not (reads.last or writes.last)):
        return as_they_are
    rank = max(len(seen), len(met))
    if any(length not in (1, rank) for length in (len(seen), len(met))):
        return Misfit(f"a {reads} cannot be laid onto a {writes}")
    if prod(seen) == 1 and len(met) == rank:
        return _Meeting(Grid((1,) * rank), Grid(met))
    if prod(met) == 1:
        ones = (1,) * rank
        return _Meeting(Grid((*seen, *ones)[:rank]), Grid(ones))
    if rank == 1:
        return _meet_rows(reads, writes, grids)
    for end in (reads, writes):
        if end.last and len(end.places) > 1 and not grids.is_map(end.places):
            return Misfit(f"the {end} shows windows, heads or queries, not parts of the input")
    if len(seen) == len(met):
        return as_they_are
    if len(met) == 1:
        grid = grids.of(met[0], len(seen), seen)
        return _Meeting(Grid(seen), grid) if grid else _no_grid(met[0], seen)
    grid = grids.of(seen[0], len(met), met)
    return _Meeting(grid, Grid(met)) if grid else _no_grid(seen[0], met)


def _meet_rows(reads: Layout, writes: Layout, grids: Grids) -> _Meeting | Misfit:
    """Two rows of different lengths: grids, or a sequence where a convolution has one."""
    one, other = reads.places[0], writes.places[0]
    both = grids.both(one, other)
    if both:
        return _Meeting(*both)
    if reads.last and writes.last:
        return Misfit(f"{one} tokens do not become {other}: no grid is known that both are")
    return _Meeting(Grid(reads.places), Grid(writes.places))


def _no_grid(count: int, places: Places) -> Misfit:
    return Misfit(f"{count} tokens are no grid as {size_of(places)} places are")


def _onto_vector(reads: Layout, writes: Layout) -> Fit:
    """The average over all places."""
    weight_shape = (writes.channels, reads.channels)
    if not reads.places:
        return Fit("linear", weight_shape, (), reads.fold.size)
    if not reads.last:
        return Fit("linear", weight_shape, (), pool=(1,) * len(reads.places))
    tokens = (Move("flatten", (1, -2)),) if len(reads.places) > 1 else ()
    before = (*_batch_first(reads), *tokens, Move("movedim", (-1, 1)))
    return Fit("linear", weight_shape, (), pool=(1,), before=before)


def _linear(reads: Layout, writes: Layout, meeting: _Meeting) -> Fit:
    """The same weight at every place, channels last, in the target's dimensions."""
    before: tuple[Move, ...] = ()
    after: tuple[Move, ...] = ()
    alike = (reads.places, reads.last, reads.batch) == (writes.places, writes.last, writes.batch)
    if not alike:
        before = (*_batch_first(reads), *_without_prefix(reads, meeting.source))
        rank = len(meeting.source.places)
        if reads.last:
            before += _reshaped(reads, writes, rank, first=1)
        else:
            before += (*_reshaped(reads, writes, rank, first=2), Move("movedim", (1, -1)))
        after = (*_with_prefix(writes, meeting.target), *_batch_first(writes))
    grid = meeting.target.places
    in_a_row = len(writes.places) < len(grid)
    places = writes.places if alike else (prod(grid),) if in_a_row else grid
    weight_shape = (writes.channels, reads.channels)
    return Fit("linear", weight_shape, places, reads.fold.size, before=before, after=after)


def _reshaped(reads: Layout, writes: Layout, rank: int, first: int) -> tuple[Move, ...]:
    """The grid in as many dimensions as the target's, from dimension `first` on."""
    if len(reads.places) == len(writes.places):
        return ()
    if len(reads.places) == 1:
        return (Move("unflatten", (first, *writes.places)),)
    return (Move("flatten", (first, first + rank - 1)),)


def _convolution(
    reads: Layout,
    writes: Layout,
    meeting: _Meeting,
    own: tuple[int, ...],
    kernel: Kernel,
    resolution: Matching,
) -> Fit:
    """Channels first; onto tokens and onto one place the average rather than every nth place."""
    seen, met = meeting.source.places, meeting.target.places
    natural = own if len(own) == len(met) else (1,) * len(met)
    wanted = natural if kernel == "target" else (kernel,) * len(met)
    divides = all(read % write == 0 for read, write in zip(seen, met, strict=True))
    onto_tokens = writes.last and len(writes.places) == 1
    onto_one = prod(met) == 1 and (reads.last or writes.last)
    may_stride = divides and resolution == "stride" and not (onto_tokens or onto_one)
    strided = seen == met or may_stride
    places = seen if strided else met
    stride = tuple(read // write for read, write in zip(places, met, strict=True))
    sized = [_fit_kernel(*sizes) for sizes in zip(wanted, stride, places, met, strict=True)]
    return Fit(
        kind="conv",
        weight_shape=(writes.channels, reads.channels, *(size for size, _ in sized)),
        places=met,
        fold=reads.fold.size,
        stride=stride,
        padding=tuple(padding for _, padding in sized),
        pool=None if strided else met,
        before=_to_map(reads, meeting.source),
        after=_from_map(writes, meeting.target),
    )


def _shrinking(reads: Layout, writes: Layout, own: tuple[int, ...], kernel: Kernel) -> Fit | Misfit:
    """A convolution of the source's own size, whose output is max-pooled to the target's."""
    seen, met = reads.places, writes.places
    maps = not (reads.last or writes.last) and len(seen) == len(met) <= 3
    if not maps or any(read % write for read, write in zip(seen, met, strict=True)):
        return Misfit(f"max-pooling does not bring a {reads} to a {writes}")
    wanted = own if kernel == "target" else (kernel,) * len(met)
    sized = [_fit_kernel(size, 1, read, read) for size, read in zip(wanted, seen, strict=True)]
    return Fit(
        kind="conv",
        weight_shape=(writes.channels, reads.channels, *(size for size, _ in sized)),
        places=met,
        fold=reads.fold.size,
        stride=(1,) * len(met),
        padding=tuple(padding for _, padding in sized),
        shrink=tuple(read // write for read, write in zip(seen, met, strict=True)),
    )


def _fit_kernel(kernel: int, stride: int, read: int, write: int) -> tuple[int, int]:
    """Kernel and padding with which `read` places become exactly `write` (= read / stride).

    An odd kernel with its natural padding always does; an even one may need to be one smaller.
    """
    for padding in sorted(range(kernel), key=lambda padding: abs(2 * padding - kernel + 1)):
        if (read + 2 * padding - kernel) // stride + 1 == write:
            return kernel, padding
    return kernel - 1, (kernel - 1) // 2


def _to_map(reads: Layout, grid: Grid) -> tuple[Move, ...]:
    """From a source's layout to a map of its grid, channels first."""
    moves = (*_batch_first(reads), *_without_prefix(reads, grid))
    if reads.last:
        moves += (Move("movedim", (-1, 1)),)
    if len(reads.places) != len(grid.places):
        moves += (Move("unflatten", (2, *grid.places)),)
    return moves


def _from_map(writes: Layout, grid: Grid) -> tuple[Move, ...]:
    """From a map of the target's grid, channels first, to the target's layout."""
    moves: tuple[Move, ...] = ()
    if len(writes.places) < len(grid.places):
        moves += (Move("flatten", (2, -1)),)
    if writes.last:
        moves += (Move("movedim", (1, -1)),)
    return (*moves, *_with_prefix(writes, grid), *_batch_first(writes))


def _batch_first(layout: Layout) -> tuple[Move, ...]:
    """To the batch's first place, or back from it."""
    return (Move("transpose", (0, 1)),) if layout.batch else ()


def _without_prefix(reads: Layout, grid: Grid) -> tuple[Move, ...]:
    """The tokens that stand for places only."""
    if not grid.prefix:
        return ()
    dimension = 1 if reads.last else 2
    return (Move("narrow", (dimension, grid.prefix, prod(grid.places))),)


def _with_prefix(writes: Layout, grid: Grid) -> tuple[Move, ...]:
    """Zeros before the tokens that stand for places."""
    if not grid.prefix:
        return ()
    behind = (0, 0) if writes.last else ()
    return (Move("pad", (*behind, grid.prefix, 0)),)
