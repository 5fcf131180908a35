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
SHORTER = 30, 35, 40, 45  # steps, after which they are looked at too
_CLEAN = 4  # steps between two projections, so that what rounding lets in of the bottom cannot grow
_EXHAUSTED = 1e-12  # a next vector this small beside the operator is rounding, not direction


@dataclass(frozen=True, eq=False)
class Quadrature:
    """For each probe, places (probes, steps) with shares (probes, steps) of sum 1.

    Over all probes they stand for `dimension` eigenvalues, those beside the null space and the
    exact pairs. With as many probes as dimensions, which are orthonormal, nothing is random.
    `alternatives` are what the same probes may say as well, and how far they are from it is what
    their steps leave open: none where further steps give no more.
    """

    places: np.ndarray
    shares: np.ndarray
    dimension: int
    alternatives: tuple["Quadrature", ...] = ()

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
    known = exact.values if exact.values.size else np.zeros(1)
    rules = _Rules(diagonal, beside[1:], known[0], known[-1], laplacian.largest, dimension)
    if steps == dimension:
        return rules.after(steps)
    alternatives = (*(rules.after(fewer) for fewer in SHORTER), rules.with_lowest())
    return replace(rules.after(steps), alternatives=alternatives)


@dataclass(frozen=True, eq=False)
class _Rules:
    """What the recurrences say: `diagonal` and `beside` (steps, probes), places in [low, high].

    `known` is the highest of the exact pairs, and `low` their lowest.
    """

    diagonal: np.ndarray
    beside: np.ndarray
    low: float
    known: float
    high: float
    dimension: int

    def after(self, steps: int) -> Quadrature:
        """Gauss's rule of so many steps."""
        return self._rule(self.diagonal[:steps], self.beside[: steps - 1])

    def with_lowest(self) -> Quadrature:
        """Gauss and Radau's rule, which has one place more, where one is told.

        What falls with the eigenvalue, as heat does, it has wrong in the other direction than
        Gauss's, where no eigenvalue lies below that place: the highest that is known, or the lowest
        where a probe sees others between them. Source: Golub and Meurant, Matrices, moments and
        quadrature, 1994.
        """
        last = []
        for diagonal, beside in zip(self.diagonal.T, self.beside.T, strict=True):
            values, vectors = eigh_tridiagonal(diagonal, beside[:-1])
            place = self.known if values[0] > self.known else self.low
            apart = np.maximum(values - place, _EXHAUSTED * self.high)
            last.append(place + beside[-1] ** 2 * (vectors[-1] ** 2 / apart).sum())
        return self._rule(np.vstack([self.diagonal, last]), self.beside)

    def _rule(self, diagonal: np.ndarray, beside: np.ndarray) -> Quadrature:
        found = [
            eigh_tridiagonal(along, across)
            for along, across in zip(diagonal.T, beside.T, strict=True)
        ]
        places = np.clip([values for values, _ in found], self.low, self.high)
        return Quadrature(
            places, np.array([vectors[0] ** 2 for _, vectors in found]), self.dimension
        )
