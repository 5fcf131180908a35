"""The matrix variant of Eq. 6: how far the heat of all nodes at once differs between two graphs."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.linalg import eigh
from scipy.special import stdtrit

from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.connectivity.propagate import propagate
from n2nfx.connectivity.times import checked_times
from n2nfx.errors import UsageError, did_you_mean
from n2nfx.seeds import generator

Method = Literal["auto", "dense", "sampled"]

LARGEST_DENSE = 8_000  # nodes, whose eigenvectors are all found
CAPTURED, PROBES = 16, 16  # directions that are taken whole, and random ones for the rest
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class MatrixFrobenius:
    """||exp(-t L1) - exp(-t L2)||_F at one time, `low` and `high` of a 95% confidence interval.

    Where `exact`, both are `value` give or take `certificate`, which bounds what rounding and
    truncation did; `tolerance` was asked for, and `seed` drew the probes.
    """

    time: float
    value: float
    low: float
    high: float
    exact: bool
    certificate: float
    method: Literal["dense", "sampled"]
    tolerance: float
    seed: int


def matrix_frobenius(
    one: ChannelGraph,
    other: ChannelGraph,
    time: float,
    tol: float = 1e-10,
    *,
    method: Method = "auto",
    seed: int = 0,
) -> MatrixFrobenius:
    """The matrix Frobenius distance of two graphs on the same nodes, at a time that may be inf.

    From all eigenvectors up to 8,000 nodes; above, 16 directions that hold most of it are taken
    whole and 16 probes see the rest (Meyer et al., Hutch++, 2021), each certified to `tol`. Raises
    `UsageError` for graphs of different sizes, and for a time that is negative or NaN.
    """
    (at,) = checked_times(time)
    if one.n != other.n:
        raise UsageError(f"the graphs have {one.n} and {other.n} nodes; they must be the same")
    if method not in get_args(Method):
        near = did_you_mean(str(method), get_args(Method))
        raise UsageError(f"no method {method!r}; take {', '.join(get_args(Method))}{near}")
    both = Laplacian(one), Laplacian(other)
    if method == "dense" or (method == "auto" and one.n <= LARGEST_DENSE):
        return _dense(*both, float(at), tol, seed)
    return _sampled(*both, float(at), tol, seed)


def _dense(one: Laplacian, other: Laplacian, time: float, tol: float, seed: int) -> MatrixFrobenius:
    (first, first_error), (second, second_error) = _kernel(one, time), _kernel(other, time)
    value = float(np.linalg.norm(first - second))
    certificate = first_error + second_error
    return MatrixFrobenius(time, value, value, value, True, certificate, "dense", tol, seed)


def _kernel(laplacian: Laplacian, time: float) -> tuple[np.ndarray, float]:
    """(n, n) exp(-t L), the mean over components and what decays, and a bound of its error.

    A rounded L + E differs by at most ||E|| t exp(-t lambda), lambda being the smallest nonzero.
    """
    means = laplacian.means(np.eye(laplacian.n))
    rounding = 8 * float(np.finfo(np.float64).eps) * float(np.sqrt(laplacian.n))
    if not np.isfinite(time) or laplacian.components == laplacian.n:
        return means, rounding
    values, vectors = eigh(laplacian.toarray(), overwrite_a=True, check_finite=False)
    values, vectors = values[laplacian.components :], vectors[:, laplacian.components :]
    lowest = max(float(values[0]), rounding * laplacian.largest)
    kernel = (vectors * np.exp(-time * np.maximum(values, 0.0))) @ vectors.T
    slowest = min(time, 1 / (np.e * lowest))
    return means + laplacian.project(kernel), rounding * (1 + laplacian.largest * slowest)


def _sampled(
    one: Laplacian, other: Laplacian, time: float, tol: float, seed: int
) -> MatrixFrobenius:
    """M = exp(-t L1) - exp(-t L2): ||M||^2 = ||M Q||^2 + ||M (I - Q Q')||^2.

    The rest is the mean over orthonormal probes, times the dimensions that are left.
    """
    difference = _Difference(one, other, time, tol)
    draw = generator(seed, "matrix_frobenius")
    captured = min(CAPTURED, one.n)
    image = difference(draw.standard_normal((one.n, captured)))
    basis = np.linalg.qr(image)[0]
    inside = float(np.sum(difference(basis) ** 2))
    left = one.n - captured
    probes = min(PROBES, left)
    drawn = draw.standard_normal((one.n, probes))
    outside = np.linalg.qr(drawn - basis @ (basis.T @ drawn))[0]
    seen = left * np.sum(difference(outside) ** 2, axis=0)
    rest, width = float(seen.mean()) if probes else 0.0, 0.0
    if 1 < probes < left:
        spread = float(seen.std(ddof=1)) * np.sqrt((1 - probes / left) / probes)
        width = float(stdtrit(probes - 1, (1 + _CONFIDENCE) / 2)) * spread
    value, low, high = (
        float(np.sqrt(max(square, 0.0)))
        for square in (inside + rest, inside + max(rest - width, 0.0), inside + rest + width)
    )
    certificate = 2 * difference.error * float(np.sqrt(captured + left))
    return MatrixFrobenius(time, value, low, high, False, certificate, "sampled", tol, seed)


class _Difference:
    """M x for x (n, k), and the largest error of either graph for a column of unit length."""

    def __init__(self, one: Laplacian, other: Laplacian, time: float, tol: float) -> None:
        self._both = one, other
        self._time = time
        self._tol = tol
        self.error = 0.0

    def __call__(self, block: np.ndarray) -> np.ndarray:
        found = np.empty_like(block)
        for place, column in enumerate(block.T):
            found[:, place] = self._column(column)
        return found

    def _column(self, column: np.ndarray) -> np.ndarray:
        first, second = (self._heat(laplacian, column) for laplacian in self._both)
        return first - second

    def _heat(self, laplacian: Laplacian, column: np.ndarray) -> np.ndarray:
        stays = laplacian.means(column)
        start = laplacian.project(column - stays)
        length = float(np.linalg.norm(column))
        if not np.isfinite(self._time) or not start.any():
            return stays
        found = propagate(laplacian, start, np.array([self._time]), self._tol * length)
        self.error = max(self.error, float(found.errors[0]) / length)
        return stays + found.vectors[0]
