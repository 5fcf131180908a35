"""Scree diagrams: alpha(K, t) of Eq. 7, exact or with a confidence interval."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from n2nfx.connectivity.eigenvalues import Eigenvalues, Method, eigenvalues
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.quadrature import Quadrature
from n2nfx.connectivity.times import checked_times
from n2nfx.errors import CannotOperate, UsageError, did_you_mean

ZeroModes = Literal["paper", "nonzero"]

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

    Up to 8,000 nodes from all eigenvalues (n^3 of time, n^2 of memory); above, from up to 64 exact
    pairs at the bottom and 32 probes of 50 steps each, in time linear in the edges. Raises
    `UsageError` for K outside of (0, 1] and for times that are negative or not finite, and
    `CannotOperate` where no eigenvalue is counted.
    """
    _asked(K, times, zero_modes)  # before eigenvalues are looked for
    return scree_of(eigenvalues(graph, method, seed), K, times, zero_modes=zero_modes)


def scree_of(
    found: Eigenvalues,
    K: ArrayLike = 0.06,
    times: ArrayLike = FIGURE_4,
    *,
    zero_modes: ZeroModes = "paper",
) -> Scree:
    """As `scree`, of eigenvalues that are known already: many times, and these once."""
    fractions, at = _asked(K, times, zero_modes)
    zeros = found.components - 1 if zero_modes == "paper" else 0
    counted = zeros + found.n - found.components
    if not counted:
        raise CannotOperate("the graph has no eigenvalue that counts: it has no edges")
    counts = tuple(min(counted, max(1, round(float(k) * found.n))) for k in fractions)
    spectrum = _Spectrum(np.concatenate([np.zeros(zeros), found.known]), found.others)
    alpha, error = spectrum.alpha(counts, at)
    return Scree(
        alpha=alpha,
        low=np.maximum(alpha - error, 0.0),
        high=np.minimum(alpha + error, 1.0),
        exact=found.method == "dense",
        K=fractions,
        counts=counts,
        times=at,
        zero_modes=zero_modes,
        components=found.components,
        method=found.method,
        pairs=counted if found.method == "dense" else found.known.size,
        tolerance=found.tolerance,
        seed=found.seed,
    )


def _asked(K: ArrayLike, times: ArrayLike, zero_modes: ZeroModes) -> tuple[np.ndarray, np.ndarray]:
    """Fractions and times, checked as `scree` says."""
    fractions, at = checked_fractions(K), checked_times(times)
    if not np.isfinite(at).all():
        raise UsageError(
            "a scree diagram has finite times only; at infinity alpha is 1 if connected"
        )
    options = get_args(ZeroModes)
    if zero_modes not in options:
        told = f"no zero_modes {zero_modes!r}; take {' or '.join(options)}"
        raise UsageError(told + did_you_mean(str(zero_modes), options))
    return fractions, at


def checked_fractions(K: ArrayLike) -> np.ndarray:
    """(len(K),) float64. Raises `UsageError` for none, and for what is no fraction above 0."""
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


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Eigenvalues that count: `pairs` (k,) one by one, and others as the probes see them."""

    pairs: np.ndarray
    others: Quadrature

    def alpha(self, counts: tuple[int, ...], times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """alpha (len(counts), T), and half of the width of its confidence interval.

        One part of it is chance, by a jackknife over the probes; the other is what their steps
        leave open, since where eigenvalues lie dense few steps put them in the wrong places.
        """
        probes = self.others.probes
        every = np.arange(probes)
        whole = self._share(self.others, every, counts, times)
        if probes in (0, self.others.dimension):
            return whole, np.zeros_like(whole)
        parts = [
            self._share(self.others, np.delete(every, probe), counts, times) for probe in every
        ]
        spread = np.sqrt((probes - 1) * np.var(parts, axis=0))
        spread *= np.sqrt(1 - probes / self.others.dimension)  # what no probe is drawn from
        left_open = [
            np.abs(self._share(other, every, counts, times) - whole)
            for other in self.others.alternatives
        ]
        by_chance = stdtrit(probes - 1, (1 + _CONFIDENCE) / 2) * spread
        return whole, by_chance + np.max(left_open, axis=0, initial=0.0)

    def _share(
        self, rule: Quadrature, probes: np.ndarray, counts: tuple[int, ...], times: np.ndarray
    ) -> np.ndarray:
        """alpha from some of the probes; where a count falls into one's share, it is divided.

        Relative to the lowest eigenvalue, so that late heat does not vanish.
        """
        each = rule.dimension / max(probes.size, 1)
        places = np.concatenate([self.pairs, rule.places[probes].ravel()])
        weights = np.concatenate([np.ones(self.pairs.size), each * rule.shares[probes].ravel()])
        order = np.argsort(places, kind="stable")
        places, weights = places[order], weights[order]
        heat = weights * np.exp(-np.multiply.outer(times, places - places[0]))
        reached = np.cumsum(weights)
        inside = [
            np.clip((count - (reached - weights)) / np.maximum(weights, 1e-300), 0, 1)
            for count in counts
        ]
        return np.minimum((np.array(inside) @ heat.T) / heat.sum(axis=1), 1.0)
