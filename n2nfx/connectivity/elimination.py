"""Block LDL' of a shifted Laplacian, group by group: solves, and counts of eigenvalues."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import ldl, solve_triangular

from n2nfx.connectivity.elimination_order import elimination_order, is_diagonal
from n2nfx.connectivity.laplacian import Laplacian

_GROWTH = 1e6  # of entries; what rounding does to the spectrum grows with them


@dataclass(frozen=True)
class _Diagonal:
    """A group that was eliminated while its own block was the diagonal `own` (size,).

    `joined` maps a later group to B', where B joins that group to this one: the entries of a
    diagonal (size,), or (size, size of the later group).
    """

    group: int
    own: np.ndarray
    joined: dict[int, np.ndarray]

    @property
    def negative(self) -> int:
        """How many entries of the diagonal are."""
        return int((self.own < 0).sum())

    def divide(self, x: np.ndarray) -> np.ndarray:
        """inverse(D) x."""
        return (x.T / self.own).T

    def forward(self, x: np.ndarray) -> np.ndarray:
        """inverse(L) P x, where both are 1."""
        return x

    def backward(self, x: np.ndarray) -> np.ndarray:
        """P' inverse(L') x."""
        return x


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

    @property
    def negative(self) -> int:
        """How many eigenvalues of D are."""
        return negative(self.diagonal, self.beside)

    def divide(self, x: np.ndarray) -> np.ndarray:
        """inverse(D) x, where D has blocks of one or two rows."""
        return _divide(self.diagonal, self.beside, x)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """inverse(L) P x."""
        return _solved(self.lower, x[self.order])

    def backward(self, x: np.ndarray) -> np.ndarray:
        """P' inverse(L') x."""
        found = np.empty_like(x)
        found[self.order] = _solved(self.lower, x, trans=1)
        return found


class UnstablePivots(ArithmeticError):
    """A group's own block came near to singular: neither counts nor solves were to be trusted."""


class Elimination:
    """`scale` L + `shift` I, factored group by group in the order of `elimination_order`.

    `negative` is its number of negative eigenvalues (Sylvester). Raises `UnstablePivots` where
    entries grow by more than a factor of 1e6, which a positive definite matrix never does.
    """

    def __init__(
        self, laplacian: Laplacian, scale: float, shift: float, *, keep: bool, backwards: bool
    ) -> None:
        self._spans = laplacian.spans
        order = elimination_order(laplacian, backwards=backwards).groups
        self._rank = {group: place for place, group in enumerate(order)}
        self._open = self._opened(laplacian, scale, shift)
        self._bound = _GROWTH * max(float(np.abs(block).max()) for block in self._open.values())
        self.negative = 0
        self._pivots: list[_Diagonal | _Pivot] = []
        for group in order:
            pivot = self._eliminate(group)
            if keep:
                self._pivots.append(pivot)

    @property
    def entries(self) -> int:
        """How many numbers of the factor are kept, but for permutations and pairs of rows."""
        return sum(
            (pivot.own.size if isinstance(pivot, _Diagonal) else pivot.lower.size)
            + sum(across.size for across in pivot.joined.values())
            for pivot in self._pivots
        )

    def solve(self, right: np.ndarray) -> np.ndarray:
        """x with (scale L + shift I) x = right, (n,)."""
        x = right.copy()
        for pivot in self._pivots:
            here = self._spans[pivot.group]
            x[here] = pivot.forward(x[here])
            known = pivot.divide(x[here])
            for group, across in pivot.joined.items():
                x[self._spans[group]] -= _applied(across.T, known)
        for pivot in reversed(self._pivots):
            here = self._spans[pivot.group]
            known = pivot.divide(x[here])
            for group, across in pivot.joined.items():
                known -= pivot.divide(_applied(across, x[self._spans[group]]))
            x[here] = pivot.backward(known)
        return x

    def _opened(
        self, laplacian: Laplacian, scale: float, shift: float
    ) -> dict[tuple[int, int], np.ndarray]:
        """The lower blocks (later group, earlier group) of the matrix, in elimination order.

        A block that is a diagonal is its entries.
        """
        blocks: dict[tuple[int, int], np.ndarray] = {
            (group, group): scale * laplacian.degrees[self._spans[group]] + shift
            for group in self._rank
        }
        for (source, target), weights in laplacian.blocks.items():
            later = self._rank[target] > self._rank[source]
            place = (target, source) if later else (source, target)
            if source != target and is_diagonal(weights):
                blocks[place] = -scale * weights.diagonal()
                continue
            dense = weights if isinstance(weights, np.ndarray) else weights.toarray()
            if source == target:
                blocks[place] = np.diag(blocks[place]) - scale * (dense + dense.T)
            else:
                blocks[place] = -scale * (dense if later else dense.T)
        return blocks

    def _eliminate(self, group: int) -> _Diagonal | _Pivot:
        """Take one group out, and leave in its neighbours what it does to them."""
        own = self._open.pop((group, group))
        joined = {
            later: self._open.pop((later, group)).T
            for later in [row for row, column in self._open if column == group]
        }
        pivot = _diagonal(group, own, joined) if own.ndim == 1 else _pivot(group, own, joined)
        self.negative += pivot.negative
        for one, across in pivot.joined.items():
            divided = pivot.divide(across)
            for other, through in pivot.joined.items():
                if self._rank[one] <= self._rank[other]:
                    self._subtract((other, one), _across(through, divided))
        return pivot

    def _subtract(self, place: tuple[int, int], update: np.ndarray) -> None:
        found = self._open.get(place)
        self._open[place] = -update if found is None else _difference(found, update)
        if not np.abs(self._open[place]).max() <= self._bound:
            raise UnstablePivots


def _diagonal(group: int, own: np.ndarray, joined: dict[int, np.ndarray]) -> _Diagonal:
    if joined and not own.all():
        raise UnstablePivots
    return _Diagonal(group, own, joined)


def _pivot(group: int, own: np.ndarray, joined: dict[int, np.ndarray]) -> _Pivot:
    lower, middle, order = ldl(own, overwrite_a=True, check_finite=False)
    lower = lower[order]
    diagonal, beside = middle.diagonal().copy(), middle.diagonal(1).copy()
    if joined and _singular(diagonal, beside):
        raise UnstablePivots
    solved = {later: _solved(lower, _whole(across)[order]) for later, across in joined.items()}
    return _Pivot(group, lower, order, diagonal, beside, solved)


def _whole(block: np.ndarray) -> np.ndarray:
    """A block as a matrix."""
    return np.diag(block) if block.ndim == 1 else block


def _applied(block: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A block, or the diagonal that one is, times a vector."""
    return block * x if block.ndim == 1 else block @ x


def _across(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left' right of two blocks, of which each may be a diagonal; of two of them it is one."""
    if left.ndim == 1:
        return (right.T * left).T
    return left.T * right if right.ndim == 1 else left.T @ right


def _difference(found: np.ndarray, update: np.ndarray) -> np.ndarray:
    """found - update of two blocks, of which each may be a diagonal; `found` may be overwritten."""
    if found.ndim > update.ndim:
        found[np.diag_indices(update.size)] -= update
    elif found.ndim < update.ndim:
        found = np.diag(found) - update
    else:
        found -= update
    return found


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
