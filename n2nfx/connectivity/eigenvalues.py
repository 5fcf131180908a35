"""The nonzero eigenvalues of a graph: all of them, or low ones exactly and the rest by probes."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.linalg import eigvalsh

from n2nfx.connectivity.bottom import bottom
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.connectivity.quadrature import Quadrature, quadrature
from n2nfx.connectivity.spectrum import Smallest
from n2nfx.errors import UsageError, did_you_mean

Method = Literal["auto", "dense", "slq"]

LARGEST_DENSE = 8_000  # nodes, whose eigenvalues are all found
PAIRS = 64  # exact ones at the bottom, where late heat is
_TOLD = 1e6  # times its residual is an eigenvalue that has digits enough for a unit of time


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """The spectrum of L outside of the null space, whose dimension is `components`.

    `known` (k,) ascending, each within its one of `residuals` (k,) of an eigenvalue, and `others`,
    as probes see them: none where `method` is dense. The known ones are the lowest, but for those
    between them whose residuals are not small. `found_by` is what found them, and `tolerance` what
    their residuals were asked to stay below.
    """

    n: int
    components: int
    known: np.ndarray
    residuals: np.ndarray
    others: Quadrature
    method: Literal["dense", "slq"]
    found_by: Literal["dense", "lanczos", "shift-invert"]
    tolerance: float
    seed: int

    @property
    def smallest(self) -> Smallest | None:
        """The first of the known ones; None where there is none, or rounding is not far below it.

        All eigenvalues at once are right to rounding of the largest; what looks for the smallest
        alone is better where it is tiny.
        """
        hidden = self.method == "dense" and (self.known[:1] < _TOLD * self.residuals[:1]).any()
        if hidden or not self.known.size:
            return None
        return Smallest(
            value=float(self.known[0]),
            certified=self.method == "dense",
            components=self.components,
            residual=float(self.residuals[0]),
            method=self.found_by,
            tolerance=self.tolerance,
            seed=self.seed,
        )


def eigenvalues(graph: ChannelGraph, method: Method = "auto", seed: int = 0) -> Eigenvalues:
    """All eigenvalues up to 8,000 nodes (n^3 of time, n^2 of memory), or else by `slq`.

    That is up to 64 exact pairs at the bottom and 32 probes of 50 steps each, in time linear in
    the edges. Raises `UsageError` for another method.
    """
    if method not in get_args(Method):
        near = did_you_mean(str(method), get_args(Method))
        raise UsageError(f"no method {method!r}; take {' or '.join(get_args(Method))}{near}")
    laplacian = Laplacian(graph)
    if method == "dense" or (method == "auto" and laplacian.n <= LARGEST_DENSE):
        return _dense(laplacian, seed)
    return _sampled(laplacian, seed)


def _dense(laplacian: Laplacian, seed: int) -> Eigenvalues:
    known = np.zeros(0)
    if laplacian.components < laplacian.n:
        values = eigvalsh(laplacian.toarray(), overwrite_a=True, check_finite=False)
        known = np.maximum(values[laplacian.components :], 0.0)
    rounding = float(np.finfo(np.float64).eps * laplacian.n * laplacian.largest)
    return Eigenvalues(
        n=laplacian.n,
        components=laplacian.components,
        known=known,
        residuals=np.full(known.size, rounding),
        others=Quadrature.none(),
        method="dense",
        found_by="dense",
        tolerance=rounding,
        seed=seed,
    )


def _sampled(laplacian: Laplacian, seed: int) -> Eigenvalues:
    exact = bottom(laplacian, min(PAIRS, (laplacian.n - laplacian.components) // 4), seed)
    return Eigenvalues(
        n=laplacian.n,
        components=laplacian.components,
        known=exact.values,
        residuals=exact.residuals,
        others=quadrature(laplacian, exact, seed),
        method="slq",
        found_by=exact.method,
        tolerance=exact.tolerance,
        seed=seed,
    )
