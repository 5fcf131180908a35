"""exp(-t L) v for many t at once, each with a bound of its error that is never below the error."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.fft import dct

from n2nfx.connectivity.chebyshev import Series, walk
from n2nfx.connectivity.elimination import Elimination
from n2nfx.connectivity.elimination_order import elimination_order
from n2nfx.connectivity.lanczos import Lanczos, Ritz
from n2nfx.connectivity.laplacian import Laplacian

Method = Literal["auto", "lanczos", "chebyshev", "shift-invert"]

MOST_STEPS = 400  # of Lanczos, where a graph counts as stiff; memory is a vector a step
LARGEST_KRYLOV = 300_000  # nodes, above which a Krylov basis takes too much memory
_CHECK = 10  # steps between two looks at the error
_SAMPLES = 4096  # of a function whose Chebyshev coefficients are taken
_POLES = (-3, -2.5, -2, -1.5, -1, -0.5, 0)  # that are tried: powers of ten times the latest time
_EPSILON = float(np.finfo(np.float64).eps)
_ROUNDING = 8 * _EPSILON  # of a product with L, in units of its largest eigenvalue
_FLOOR = 1e-14  # of what a basis loses, in units of the vector; measured: 3e-15


@dataclass(frozen=True)
class Decay:
    """||exp(-t L) v||, as the sum of exponentials that a Krylov space has for it.

    `rates` (m,) are its eigenvalues and `shares` (m,) the parts of v along its eigenvectors;
    `truncation` bounds the error of the space at finite and infinite times (T,), and `rounding`
    what rounding does to it beyond a rounded L, whose eigenvalues are at most `largest`.
    """

    rates: np.ndarray
    shares: np.ndarray
    largest: float
    truncation: Callable[[np.ndarray], np.ndarray]
    rounding: Callable[[np.ndarray], np.ndarray]

    @property
    def start(self) -> float:
        """||v||."""
        return float(np.linalg.norm(self.shares))

    def lengths(self, times: np.ndarray) -> np.ndarray:
        """(T,) ||exp(-t L) v||."""
        return np.linalg.norm(self.shares * _decayed(times, self.rates), axis=1)

    def errors(self, times: np.ndarray) -> np.ndarray:
        """(T,) a bound of ||error||: of the truncation, and of rounding.

        A rounded L + E differs by ||E|| times the integral of ||exp(-s L) v|| over s up to t.
        Neither the truth nor what is computed is longer than v.
        """
        integral = _integrated(times, self.rates) @ np.abs(self.shares)
        rounding = _FLOOR * self.start + _ROUNDING * self.largest * integral + self.rounding(times)
        return np.minimum(self.truncation(times) + rounding, 2 * self.start)


@dataclass(frozen=True, eq=False)
class Propagated:
    """exp(-t L) v at some times: `vectors` (T, n), bounds of their `errors` (T,), their `lengths`.

    `products` counts products with L and solves. `decay` is that of the latest times.
    """

    vectors: np.ndarray
    errors: np.ndarray
    lengths: np.ndarray
    method: Literal["lanczos", "chebyshev", "shift-invert"]
    products: int
    decay: Decay | None

    def replaced(self, at: np.ndarray, other: "Propagated") -> "Propagated":
        """What another way found at some of the times, where it is better than what is here."""
        better = other.errors < self.errors[at]
        if not better.any():
            return self
        vectors, errors, lengths = self.vectors.copy(), self.errors.copy(), self.lengths.copy()
        kept = at[better]
        vectors[kept], errors[kept] = other.vectors[better], other.errors[better]
        lengths[kept] = other.lengths[better]
        products = self.products + other.products
        return Propagated(vectors, errors, lengths, other.method, products, other.decay)


def propagate(
    laplacian: Laplacian, start: np.ndarray, times: np.ndarray, tol: float, method: Method = "auto"
) -> Propagated:
    """exp(-t L) start at finite times, for a nonzero start without part in the null space.

    `auto` is Lanczos; the times at which 400 steps do not reach `tol` are left to shift-invert if
    its factor fits into 2 GiB; above 300,000 nodes Chebyshev. Where `tol` is out of reach, `errors`
    say what was reached.
    """
    if method == "chebyshev" or (method == "auto" and laplacian.n > LARGEST_KRYLOV):
        return _by_chebyshev(laplacian, start, times, tol)
    if method == "shift-invert":
        return _by_shift_invert(laplacian, start, times, tol)
    found = _by_lanczos(laplacian, start, times, tol)
    missed = _missed(found, times, tol)
    if method == "lanczos" or not missed.size or not elimination_order(laplacian).fits:
        return found
    return found.replaced(missed, _by_shift_invert(laplacian, start, times[missed], tol))


def _missed(found: Propagated, times: np.ndarray, tol: float) -> np.ndarray:
    """The places of the times whose error is above `tol`, and not by rounding."""
    assert found.decay is not None
    truncated = found.decay.truncation(times) > found.errors / 2
    return np.flatnonzero((found.errors > tol) & truncated)


def _by_lanczos(
    laplacian: Laplacian, start: np.ndarray, times: np.ndarray, tol: float
) -> Propagated:
    """All times from one Krylov space of L, grown until the bound of the error says it is enough.

    Its residual is beyond |e_m' exp(-s T) e_1|, which has one sign for all s, so that its integral
    has a closed form.
    """
    length = float(np.linalg.norm(start))
    run = Lanczos(laplacian.__matmul__, laplacian.project, start, _limit(laplacian))
    while True:
        run.extend(_CHECK)
        ritz = run.ritz()
        decay = _decay_of(ritz, length)
        if run.exhausted or _enough(decay, times, tol):
            break
    vectors = _combined(ritz, length, decay.rates, run.basis, times)
    lengths = decay.lengths(times)
    return Propagated(vectors, decay.errors(times), lengths, "lanczos", run.steps, decay)


def _limit(laplacian: Laplacian) -> int:
    """The most dimensions that a Krylov space outside of the null space can have, or may."""
    return max(1, min(MOST_STEPS, laplacian.n - laplacian.components))


def _decay_of(ritz: Ritz, length: float) -> Decay:
    largest = max(float(ritz.values[-1]), float(np.finfo(np.float64).tiny))
    rates = _positive(ritz.values, largest)
    corner = ritz.vectors[-1] * ritz.vectors[0]

    def truncation(times: np.ndarray) -> np.ndarray:
        """Times to infinity give more, and there the pivots of T say it without cancellation."""
        found = np.minimum(np.abs(_integrated(times, rates) @ corner), ritz.inverse_corner)
        return length * ritz.beyond * found

    return Decay(rates, length * ritz.vectors[0], largest, truncation, np.zeros_like)


def _positive(values: np.ndarray, largest: float) -> np.ndarray:
    """Ritz values, those that rounding took below what can be told from 0 lifted to it."""
    return np.maximum(values, _EPSILON * largest / 1024)


def _enough(decay: Decay, times: np.ndarray, tol: float) -> bool:
    errors, truncation = decay.errors(times), decay.truncation(times)
    return bool(((errors <= tol) | (truncation <= (errors - truncation) / 4)).all())


def _combined(
    ritz: Ritz, length: float, rates: np.ndarray, basis: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """(T, n) length V exp(-t T) e_1."""
    return length * ((_decayed(times, rates) * ritz.vectors[0]) @ ritz.vectors.T) @ basis


def _by_shift_invert(
    laplacian: Laplacian, start: np.ndarray, times: np.ndarray, tol: float
) -> Propagated:
    """Times within a factor of 100 share a pole: another would not suit them much better."""
    order = np.argsort(times)
    first, rest = 0, times[order]
    found = None
    while first < times.size:
        until = int(np.searchsorted(rest, 100 * rest[first], side="right"))
        part = _by_one_pole(laplacian, start, rest[first:until], tol)
        places = order[first:until]
        found = (found or _nothing(times.size, start.size)).replaced(places, part)
        first = until
    assert found is not None
    return found


def _nothing(times: int, nodes: int) -> Propagated:
    vectors, lengths = np.zeros((times, nodes)), np.zeros(times)
    return Propagated(vectors, np.full(times, np.inf), lengths, "shift-invert", 0, None)


def _by_one_pole(
    laplacian: Laplacian, start: np.ndarray, times: np.ndarray, tol: float
) -> Propagated:
    """A Krylov space of B = inverse(I + pole L), whose size does not depend on the spectrum.

    exp(-t L) is a smooth function of B on [0, 1], and what is lost is at most twice the error of
    its best polynomial (van den Eshof and Hochbruck, 2006), which the tail of its Chebyshev series
    bounds. The pole is that which needs the fewest solves.
    """
    length = float(np.linalg.norm(start))
    share = tol / (4 * length)
    pole, steps = _planned(times, share, _limit(laplacian))
    factor = Elimination(laplacian, pole, 1.0, keep=True, backwards=False)
    run = Lanczos(factor.solve, laplacian.project, start, steps)
    run.extend(steps)
    ritz = run.ritz()
    inverse = np.clip(ritz.values, 1 / (1 + pole * laplacian.largest), 1.0)
    rates = _positive((1 / inverse - 1) / pole, laplacian.largest)

    def truncation(at: np.ndarray) -> np.ndarray:
        if run.invariant or run.steps == laplacian.n - laplacian.components:
            return np.zeros(at.size)
        return 2 * length * np.array([_tails(t / pole)[run.steps] for t in at])

    def rounding(at: np.ndarray) -> np.ndarray:
        """Solves, unlike products, make errors in all the sums of a factor."""
        return 4 * _ROUNDING * length * _sensitivity(at / pole, 1 / (1 + pole * laplacian.largest))

    decay = Decay(rates, length * ritz.vectors[0], laplacian.largest, truncation, rounding)
    vectors = _combined(ritz, length, rates, run.basis, times)
    lengths = decay.lengths(times)
    return Propagated(vectors, decay.errors(times), lengths, "shift-invert", run.steps, decay)


def _planned(times: np.ndarray, share: float, limit: int) -> tuple[float, int]:
    """The pole that needs the fewest steps for all times, and these steps; the middle one of ties.

    A pole far from the times amplifies rounding.
    """
    plans = []
    for exponent in _POLES:
        pole = 10.0**exponent * (float(times.max()) or 1.0)
        tails = np.max([_tails(t / pole) for t in times], axis=0)
        steps = min(limit, int((tails > share).sum()) + 1)
        plans.append((steps, abs(exponent + 1), pole))
    steps, _, pole = min(plans)
    return pole, steps


def _tails(ratio: float) -> np.ndarray:
    """(k,) what polynomials of degree below k miss of exp(-ratio (1 / x - 1)) on [0, 1], at most.

    The sum of the Chebyshev coefficients from the k-th on.
    """
    angles = (np.arange(_SAMPLES) + 0.5) * np.pi / _SAMPLES
    places = (np.cos(angles) + 1) / 2
    transformed = np.asarray(dct(np.exp(-ratio * (1 / places - 1)), type=2))
    return np.cumsum(np.abs(transformed[::-1]) / _SAMPLES)[::-1]


def _sensitivity(ratio: np.ndarray, lowest: float) -> np.ndarray:
    """(T,) the steepest slope of exp(-ratio (1 / x - 1)) on [lowest, 1]; it has one hump."""
    x = np.clip(ratio / 2, lowest, 1.0)
    with np.errstate(over="ignore", under="ignore"):
        hump = ratio / x**2 * np.exp(-ratio * (1 / x - 1))
    return np.maximum(hump, np.where(np.isfinite(ratio), ratio, 0.0))


def _by_chebyshev(
    laplacian: Laplacian, start: np.ndarray, times: np.ndarray, tol: float
) -> Propagated:
    """A walk in three vectors of memory."""
    length = float(np.linalg.norm(start))
    counted = _Counted(laplacian)
    series = Series(counted, laplacian.largest, tol / (8 * length))
    order = np.argsort(times)
    walked = walk(series, start, times[order], enough=tol / 4)
    vectors, errors = np.empty_like(walked.vectors), np.empty(times.size)
    vectors[order], errors[order] = walked.vectors, walked.errors
    steps = np.diff(times[order], prepend=0.0)
    lengths = np.concatenate([[length], np.linalg.norm(walked.vectors[:-1], axis=1)])
    errors[order] += _ROUNDING * laplacian.largest * np.cumsum(steps * lengths)
    errors = np.minimum(errors + _FLOOR * length, 2 * length)
    lengths = np.linalg.norm(vectors, axis=1)
    return Propagated(vectors, errors, lengths, "chebyshev", counted.products, None)


class _Counted:
    """Products with L, without the null space that rounding brings in, and their number."""

    def __init__(self, laplacian: Laplacian) -> None:
        self._laplacian = laplacian
        self.products = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.products += 1
        return self._laplacian.project(self._laplacian @ x)


def _decayed(times: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """(T, m) exp(-t rate)."""
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(-np.multiply.outer(times, rates))


def _integrated(times: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """(T, m) the integral of exp(-s rate) over s from 0 to t."""
    with np.errstate(over="ignore", under="ignore"):
        return -np.expm1(-np.multiply.outer(times, rates)) / rates
