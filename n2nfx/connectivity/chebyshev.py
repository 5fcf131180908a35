"""exp(-t L) v by Chebyshev polynomials, with a bound of the error that is known beforehand."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ive

MOST = 20_000  # products with L in one series; a longer time is walked in several
_FIRST = 1_000  # products of the first series; each one after it may take twice as many
_ROUNDING = 8 * float(np.finfo(np.float64).eps)  # of the recurrence; measured: up to 5.3 epsilon


@dataclass(frozen=True)
class Series:
    """exp(-t L) for t up to some time, for L with eigenvalues in [0, largest], to `tol`."""

    apply: Callable[[np.ndarray], np.ndarray]
    largest: float
    tol: float

    def at(self, start: np.ndarray, times: np.ndarray) -> np.ndarray:
        """(T, n) exp(-t L) start, each within its one of `errors` of the length of `start`."""
        half = self.largest / 2
        degree = _degree(half * float(times.max()), self.tol)
        orders = np.arange(degree + 1)
        coefficients = 2 * (-1.0) ** orders * ive(orders, half * times[:, None])
        coefficients[:, 0] /= 2
        before, now = np.zeros_like(start), start
        found = np.multiply.outer(coefficients[:, 0], now)
        for order in range(1, degree + 1):
            shifted = self.apply(now) / half - now
            before, now = now, shifted if order == 1 else 2 * shifted - before
            used = np.flatnonzero(coefficients[:, order])
            found[used] += np.multiply.outer(coefficients[used, order], now)
        return found

    def errors(self, times: np.ndarray) -> np.ndarray:
        """(T,) what is cut off, and what rounding adds up to over sqrt(t largest / 2) orders."""
        return self.tol + _ROUNDING * np.sqrt(self.largest / 2 * times)

    def longest(self, degree: int) -> float:
        """A time that a series of about this degree reaches: twice the degree is 4 times it."""
        return degree**2 / (2 * self.largest * np.log(4 / self.tol))


@dataclass(frozen=True)
class Walk:
    """exp(-t L) start at some times: `vectors` (T, n), and `errors` (T,) that bound theirs.

    The walk stops where nothing longer than `enough` is left, or after `MOST` products a series:
    what comes later is given as 0, with an error of what was left.
    """

    vectors: np.ndarray
    errors: np.ndarray


def walk(series: Series, start: np.ndarray, times: np.ndarray, enough: float) -> Walk:
    """exp(-t L) start at ascending finite times."""
    vectors, errors = np.zeros((times.size, start.size)), np.zeros(times.size)
    at, error, degree, done = 0.0, 0.0, _FIRST, 0
    while done < times.size:
        length = float(np.linalg.norm(start))
        if length <= enough or degree > MOST:
            errors[done:] = length + error
            break
        last = min(times[-1], at + series.longest(degree))
        until = int(np.searchsorted(times, last, side="right"))
        reached = np.append(times[done:until], last) - at
        found, wrong = series.at(start, reached), error + length * series.errors(reached)
        vectors[done:until], errors[done:until] = found[:-1], wrong[:-1]
        at, start, error, done, degree = last, found[-1], float(wrong[-1]), until, 2 * degree
    return Walk(vectors, errors)


def first_below(series: Series, start: np.ndarray, target: float) -> float | None:
    """The first time at which exp(-t L) start is no longer than `target`, to 1e-9 of it.

    None where it takes too many products. Every round looks at 16 times between two that are known
    to be before it and behind it.
    """
    at, width, degree = 0.0, series.longest(_FIRST), _FIRST
    while degree <= MOST:
        grid = width * np.arange(1, 17) / 16
        found = series.at(start, grid)
        below = np.flatnonzero(np.linalg.norm(found, axis=1) <= target)
        if below.size and width <= 1e-9 * (at + width):
            return at + width
        if below.size:
            width, cell = width / 16, int(below[0])
            start, at = found[cell - 1] if cell else start, at + width * cell
            continue
        start, at, width, degree = found[-1], at + width, 4 * width, 2 * degree
    return None


def _degree(z: float, tol: float) -> int:
    """The lowest degree whose error is at most `tol` for t times the largest eigenvalue of 2 z."""
    low, high = 0, 2 * MOST
    while low < high:
        middle = (low + high) // 2
        if _tail(z, middle) <= tol:
            high = middle
        else:
            low = middle + 1
    return low


def _tail(z: float, degree: int) -> float:
    """A bound of the error on [0, 2 z / t] of the series for exp(-t x) cut off after `degree`.

    It is 2 sum over k > degree of e^-z I_k(z), whose ratios fall, so that a geometric series bounds
    it. Source: Amos, Computation of modified Bessel functions and their ratios, 1974.
    """
    first = degree + 1
    ratio = z / (first + 0.5 + np.hypot(first + 0.5, z))
    return float(2 * ive(first, z) / (1 - ratio))
