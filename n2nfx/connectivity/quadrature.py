"""Where the eigenvalues of a Laplacian lie, from random vectors: blocked Lanczos quadrature.

Source: Ubaru, Chen and Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, 2017.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh_tridiagonal

from n2nfx.connectivity.bottom import Bottom
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.seeds import generator

PROBES, STEPS = 32, 50
SHORTER = 30, 35, 40, 45  # steps after which the answer is looked at too
_CLEAN = 4  # steps between two projections, so that what rounding lets in of the bottom cannot grow
_EXHAUSTED = 1e-12  # a next vector this small beside the operator is rounding, not direction


@dataclass(frozen=True, eq=False)
class Quadrature:
    """For each probe, places (probes, steps) with shares (probes, steps) of sum 1.

    Over all probes they stand for `dimension` eigenvalues, those beside the null space and the
    exact pairs. With as many probes as dimensions, which are orthonormal, nothing is random.
    `shorter` is what the same probes gave after fewer steps; none where further steps give no more.
    """

    places: np.ndarray
    shares: np.ndarray
    dimension: int
    shorter: tuple["Quadrature", ...] = ()

    @classmethod
    def none(cls) -> "Quadrature":
        """Of no eigenvalue."""
        return cls(np.zeros((0, 0)), np.zeros((0, 0)), 0)

    @property
    def probes(self) -> int:
        return len(self.places)


def quadrature(laplacian: Laplacian, exact: Bottom, seed: int) -> Quadrature:
    """The spectrum that the exact pairs leave, in `STEPS` products with `PROBES` columns."""
    dimension = laplacian.n - laplacian.components - exact.values.size
    probes, steps = min(PROBES, dimension), min(STEPS, dimension)

    def clean(block: np.ndarray) -> np.ndarray:
        block = laplacian.project(block)
        return block - exact.vectors.T @ (exact.vectors @ block)

    if not dimension:
        return Quadrature.none()
    drawn = generator(seed, "quadrature").standard_normal((laplacian.n, probes))
    now = clean(np.linalg.qr(clean(drawn))[0])
    before, beside = np.zeros_like(now), np.zeros((steps + 1, probes))
    diagonal = np.zeros((steps, probes))
    for step in range(steps):
        following = laplacian @ now
        following -= beside[step] * before
        diagonal[step] = np.einsum("ij,ij->j", now, following)
        following -= diagonal[step] * now
        if step % _CLEAN == 0:
            following = clean(following)
        lengths = np.sqrt(np.einsum("ij,ij->j", following, following))
        lengths[lengths <= _EXHAUSTED * laplacian.largest] = 0.0
        beside[step + 1] = lengths
        before, now = now, following * np.divide(1, lengths, where=lengths > 0, out=0 * lengths)
    low = exact.values[0] if exact.values.size else 0.0

    def after(taken: int) -> Quadrature:
        rules = [
            eigh_tridiagonal(diagonal[:taken, probe], beside[1:taken, probe])
            for probe in range(probes)
        ]
        places = np.clip([values for values, _ in rules], low, laplacian.largest)
        return Quadrature(places, np.array([vectors[0] ** 2 for _, vectors in rules]), dimension)

    shorter = () if steps == dimension else tuple(after(fewer) for fewer in SHORTER)
    return replace(after(steps), shorter=shorter)
