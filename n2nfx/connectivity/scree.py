"""Scree diagrams: alpha(K, t) of Eq. 7, exact or with a confidence interval."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigvalsh
from scipy.special import stdtrit

from n2nfx.connectivity.bottom import Bottom, bottom
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.connectivity.quadrature import Quadrature, quadrature
from n2nfx.connectivity.times import checked_times
from n2nfx.errors import CannotOperate, UsageError, did_you_mean

Method = Literal["auto", "dense", "slq"]
ZeroModes = Literal["paper", "nonzero"]

LARGEST_DENSE = 8_000  # nodes, whose eigenvalues are all found
PAIRS = 64  # exact ones at the bottom, where late heat is
FIGURE_4 = np.linspace(0.0, 2.0, 41)
_CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Scree:
    """alpha(K, t), the share of the heat that the first eigenvalues hold (Eq. 7).

    `alpha` (len(K), T), with `low` and `high` of a 95% confidence interval, which are alpha itself
    where it is `exact`. `K` are fractions of the n eigenvalues and `counts` the numbers of them;
    `times` (T,). `zero_modes` says where counting starts: at the second eigenvalue (`paper`) or at
    the first that is not zero (`nonzero`). `tolerance` bounds the residuals of the `pairs` that
    were exact, and `seed` is what the probes were drawn with.
    """

    alpha: np.ndarray
    low: np.ndarray
    high: np.ndarray
    exact: bool
    K: np.ndarray
    counts: tuple[int, ...]
    times: np.ndarray
    zero_modes: ZeroModes
    components: int
    method: Literal["dense", "slq"]
    pairs: int
    tolerance: float
    seed: int


def scree(
    graph: ChannelGraph,
    K: ArrayLike = 0.06,
    times: ArrayLike = FIGURE_4,
    *,
    method: Method = "auto",
    zero_modes: ZeroModes = "paper",
    seed: int = 0,
) -> Scree:
    """alpha(K, t) for one or more fractions K of the eigenvalues; `times` are Fig. 4's by default.

    Up to 8,000 nodes from all eigenvalues (n^3 of time, n^2 of memory); above, from 64 exact pairs
    at the bottom and 32 probes of 50 steps each, in time linear in the edges. Raises `UsageError`
    for K outside of (0, 1] and for times that are negative or not finite, and `CannotOperate`
    where no eigenvalue is counted.
    """
    fractions, at = _checked(K), checked_times(times)
    if not np.isfinite(at).all():
        raise UsageError(
            "a scree diagram has finite times only; at infinity alpha is 1 if connected"
        )
    _known(method, Method, "method")
    _known(zero_modes, ZeroModes, "zero_modes")
    laplacian = Laplacian(graph)
    zeros = laplacian.components - 1 if zero_modes == "paper" else 0
    counted = zeros + laplacian.n - laplacian.components
    if not counted:
        raise CannotOperate("the graph has no eigenvalue that counts: it has no edges")
    counts = tuple(min(counted, max(1, round(float(k) * laplacian.n))) for k in fractions)
    dense = method == "dense" or (method == "auto" and laplacian.n <= LARGEST_DENSE)
    share = _dense(laplacian, zeros) if dense else _sampled(laplacian, zeros, seed)
    alpha, error = share.alpha(counts, at)
    return Scree(
        alpha=alpha,
        low=np.maximum(alpha - error, 0.0),
        high=np.minimum(alpha + error, 1.0),
        exact=dense,
        K=fractions,
        counts=counts,
        times=at,
        zero_modes=zero_modes,
        components=laplacian.components,
        method="dense" if dense else "slq",
        pairs=counted if dense else share.pairs.size - zeros,
        tolerance=share.tolerance,
        seed=seed,
    )


def _checked(K: ArrayLike) -> np.ndarray:
    try:
        found = np.atleast_1d(np.asarray(K, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise UsageError(f"K must be numbers: {error}") from None
    if found.ndim != 1 or not found.size:
        raise UsageError(f"K must be one fraction or a list of them, not {found.shape}")
    wrong = found[~((found > 0) & (found <= 1))]
    if wrong.size:
        near = f"; for {wrong[0]:g}% take {wrong[0] / 100:g}" if 1 < wrong[0] <= 100 else ""
        raise UsageError(
            f"K is a fraction of the eigenvalues, above 0 and up to 1, not {wrong[0]:g}{near}"
        )
    return found


def _known(word: str, words: object, named: str) -> None:
    options = get_args(words)
    if word not in options:
        told = f"no {named} {word!r}; take {' or '.join(options)}"
        raise UsageError(told + did_you_mean(str(word), options))


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Eigenvalues that count: `pairs` (k,) one by one, and others as the probes see them."""

    pairs: np.ndarray
    others: Quadrature
    tolerance: float

    def alpha(self, counts: tuple[int, ...], times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """alpha (len(counts), T), and half of the width of its confidence interval."""
        probes = self.others.probes
        whole = self._share(np.arange(probes), counts, times)
        if probes in (0, self.others.dimension):
            return whole, np.zeros_like(whole)
        parts = [
            self._share(np.delete(np.arange(probes), probe), counts, times)
            for probe in range(probes)
        ]
        spread = np.sqrt((probes - 1) * np.var(parts, axis=0))
        spread *= np.sqrt(1 - probes / self.others.dimension)  # what no probe is drawn from
        return whole, stdtrit(probes - 1, (1 + _CONFIDENCE) / 2) * spread

    def _share(self, probes: np.ndarray, counts: tuple[int, ...], times: np.ndarray) -> np.ndarray:
        """alpha from some of the probes; where a count falls into one's share, it is divided.

        Relative to the lowest eigenvalue, so that late heat does not vanish.
        """
        each = self.others.dimension / max(probes.size, 1)
        places = np.concatenate([self.pairs, self.others.places[probes].ravel()])
        weights = np.concatenate(
            [np.ones(self.pairs.size), each * self.others.shares[probes].ravel()]
        )
        order = np.argsort(places, kind="stable")
        places, weights = places[order], weights[order]
        heat = weights * np.exp(-np.multiply.outer(times, places - places[0]))
        reached = np.cumsum(weights)
        inside = [
            np.clip((count - (reached - weights)) / np.maximum(weights, 1e-300), 0, 1)
            for count in counts
        ]
        return np.minimum((np.array(inside) @ heat.T) / heat.sum(axis=1), 1.0)


def _dense(laplacian: Laplacian, zeros: int) -> _Spectrum:
    values = eigvalsh(laplacian.toarray(), overwrite_a=True, check_finite=False)
    values = np.maximum(values[laplacian.components :], 0.0)
    none = Quadrature(np.zeros((0, 0)), np.zeros((0, 0)), 0)
    tolerance = float(np.finfo(np.float64).eps * laplacian.n * laplacian.largest)
    return _Spectrum(np.concatenate([np.zeros(zeros), values]), none, tolerance)


def _sampled(laplacian: Laplacian, zeros: int, seed: int) -> _Spectrum:
    pairs = min(PAIRS, (laplacian.n - laplacian.components) // 4)
    exact = bottom(laplacian, pairs, seed) if pairs else _no_pairs(laplacian)
    others = quadrature(laplacian, exact, seed)
    values = np.concatenate([np.zeros(zeros), exact.values])
    return _Spectrum(values, others, exact.tolerance)


def _no_pairs(laplacian: Laplacian) -> Bottom:
    none = np.zeros(0)
    return Bottom(none, np.zeros((0, laplacian.n)), none, "lanczos", 0.0)
