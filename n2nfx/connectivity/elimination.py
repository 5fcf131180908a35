"""Block LDL' of a shifted Laplacian, group by group: solves, and counts of eigenvalues."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import ldl, solve_triangular

from n2nfx.connectivity.laplacian import Laplacian

_GROWTH = 1e6  # of entries; what rounding does to the spectrum grows with them


@dataclass(frozen=True)
class _Pivot:
    """A group that was eliminated: P' L D L' P of its own, and the groups it was joined to.

    `joined` maps a later group to inverse(L) P B', where B joins that group to this one.
    """

    group: int
    lower: np.ndarray
    order: np.ndarray
    diagonal: np.ndarray
    beside: np.ndarray
    joined: dict[int, np.ndarray]

    def divide(self, x: np.ndarray) -> np.ndarray:
        """inverse(D) x, where D has blocks of one or two rows."""
        return _divide(self.diagonal, self.beside, x)


class UnstablePivots(ArithmeticError):
    """A group's own block came near to singular: neither counts nor solves were to be trusted."""


class Elimination:
    """`scale` L + `shift` I, factored group by group in the order given, with dense fill.

    `negative` is its number of negative eigenvalues (Sylvester). Raises `UnstablePivots` where
    entries grow by more than a factor of 1e6, which a positive definite matrix never does.
    """

    def __init__(
        self, laplacian: Laplacian, scale: float, shift: float, *, keep: bool, backwards: bool
    ) -> None:
        self._spans = laplacian.spans
        count = len(self._spans)
        order = range(count - 1, -1, -1) if backwards else range(count)
        self._rank = {group: place for place, group in enumerate(order)}
        self._open = self._opened(laplacian, scale, shift)
        self._bound = _GROWTH * max(float(np.abs(block).max()) for block in self._open.values())
        self.negative = 0
        self._pivots: list[_Pivot] = []
        for group in order:
            if self._spans[group].start == self._spans[group].stop:
                continue
            pivot = self._eliminate(group)
            self.negative += negative(pivot.diagonal, pivot.beside)
            if keep:
                self._pivots.append(pivot)

    def solve(self, right: np.ndarray) -> np.ndarray:
        """x with (scale L + shift I) x = right, (n,)."""
        x = right.copy()
        for pivot in self._pivots:
            here = self._spans[pivot.group]
            x[here] = _solved(pivot.lower, x[here][pivot.order])
            known = pivot.divide(x[here])
            for group, across in pivot.joined.items():
                x[self._spans[group]] -= across.T @ known
        for pivot in reversed(self._pivots):
            here = self._spans[pivot.group]
            known = pivot.divide(x[here])
            for group, across in pivot.joined.items():
                known -= pivot.divide(across @ x[self._spans[group]])
            x[here][pivot.order] = _solved(pivot.lower, known, trans=1)
        return x

    def _opened(
        self, laplacian: Laplacian, scale: float, shift: float
    ) -> dict[tuple[int, int], np.ndarray]:
        """The lower blocks (later group, earlier group) of the matrix, in elimination order."""
        blocks: dict[tuple[int, int], np.ndarray] = {
            (group, group): np.diag(scale * laplacian.degrees[span] + shift)
            for group, span in enumerate(self._spans)
            if span.stop > span.start
        }
        for (source, target), weights in laplacian.blocks.items():
            dense = weights if isinstance(weights, np.ndarray) else weights.toarray()
            if source == target:
                blocks[source, source] -= scale * (dense + dense.T)
                continue
            later = self._rank[target] > self._rank[source]
            place = (target, source) if later else (source, target)
            blocks[place] = -scale * (dense if later else dense.T)
        return blocks

    def _eliminate(self, group: int) -> _Pivot:
        """Take one group out, and leave in its neighbours what it does to them."""
        own = self._open.pop((group, group))
        lower, middle, order = ldl(own, overwrite_a=True, check_finite=False)
        lower = lower[order]
        diagonal, beside = middle.diagonal().copy(), middle.diagonal(1).copy()
        joined = {
            later: _solved(lower, self._open.pop((later, group)).T[order])
            for later in [row for row, column in self._open if column == group]
        }
        if joined and _singular(diagonal, beside):
            raise UnstablePivots
        for one, across in joined.items():
            divided = _divide(diagonal, beside, across)
            for other, through in joined.items():
                if self._rank[one] <= self._rank[other]:
                    self._subtract((other, one), through.T @ divided)
        return _Pivot(group, lower, order, diagonal, beside, joined)

    def _subtract(self, place: tuple[int, int], update: np.ndarray) -> None:
        if place in self._open:
            self._open[place] -= update
        else:
            self._open[place] = -update
        if not np.abs(self._open[place]).max() <= self._bound:
            raise UnstablePivots


def fill(laplacian: Laplacian) -> int:
    """Entries of the factor that `Elimination` makes in the order of the groups."""
    sizes = [span.stop - span.start for span in laplacian.spans]
    later: dict[int, set[int]] = {group: set() for group in range(len(sizes))}
    for source, target in laplacian.blocks:
        if source != target:
            later[source].add(target)
    entries = 0
    for group, size in enumerate(sizes):
        entries += size * (size + sum(sizes[other] for other in later[group]))
        for other in later[group]:
            later[other] |= {far for far in later[group] if far > other}
    return entries


def _solved(lower: np.ndarray, x: np.ndarray, trans: int = 0) -> np.ndarray:
    """inverse(L) x, or with `trans` inverse(L') x; a search for NaN is half of its time."""
    return solve_triangular(
        lower, x, lower=True, trans=trans, unit_diagonal=True, check_finite=False
    )


def _divide(diagonal: np.ndarray, beside: np.ndarray, x: np.ndarray) -> np.ndarray:
    """inverse(D) x, D of blocks of one or two rows: its diagonal and what stands beside it."""
    first = np.flatnonzero(beside)
    divisor = np.where(diagonal == 0, 1.0, diagonal)  # those of pairs are set below
    divided = (x.T / divisor).T
    if first.size:
        one, two, across = diagonal[first], diagonal[first + 1], beside[first]
        determinant = one * two - across**2
        above, below = x[first].T, x[first + 1].T
        divided[first] = ((two * above - across * below) / determinant).T
        divided[first + 1] = ((one * below - across * above) / determinant).T
    return divided


def negative(diagonal: np.ndarray, beside: np.ndarray) -> int:
    """Negative eigenvalues of D; a block of two has one of each sign (Bunch and Kaufman, 1977)."""
    return int((_single(diagonal, beside) < 0).sum() + np.count_nonzero(beside))


def _singular(diagonal: np.ndarray, beside: np.ndarray) -> bool:
    pair = np.flatnonzero(beside)
    determinants = diagonal[pair] * diagonal[pair + 1] - beside[pair] ** 2
    return not (_single(diagonal, beside).all() and determinants.all())


def _single(diagonal: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """The blocks of one row."""
    pair = np.flatnonzero(beside)
    return np.delete(diagonal, np.concatenate([pair, pair + 1]))
