"""Lanczos with full reorthogonalization: a Krylov basis of a symmetric operator, grown by steps."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh_tridiagonal

Operator = Callable[[np.ndarray], np.ndarray]

_EXHAUSTED = 1e-14  # a next vector this small beside the operator is rounding, not direction
_CLEAN = 0.7  # one pass suffices where a vector keeps this share of its length (Kahan, Parlett)


@dataclass(frozen=True)
class Ritz:
    """Eigenvalues (m,) of T, ascending, and its eigenvectors (m, m) as columns.

    `beyond` is the length of what the basis lacks to be invariant: L V = V T + beyond v e_m'.
    `inverse_corner` is |e_m' T^-1 e_1|, from the pivots of T, which no cancellation spoils.
    """

    values: np.ndarray
    vectors: np.ndarray
    beyond: float
    inverse_corner: float


class Lanczos:
    """The Krylov space of `apply` from a nonzero `start` (n,), of at most `limit` dimensions.

    It stays where `project` projects to: what rounding lets in of a null space, far from the rest
    of the spectrum, would grow from step to step and end as a ghost eigenvalue.
    """

    def __init__(self, apply: Operator, project: Operator, start: np.ndarray, limit: int) -> None:
        self._apply = apply
        self._project = project
        self._vectors = np.empty((limit + 1, start.size))
        self._vectors[0] = start / np.linalg.norm(start)
        self._diagonal: list[float] = []
        self._beside: list[float] = []

    @property
    def steps(self) -> int:
        """Number of basis vectors, and of products with the operator so far."""
        return len(self._diagonal)

    @property
    def exhausted(self) -> bool:
        """No further step is possible: the space is invariant, or the limit is reached."""
        return self.invariant or self.steps + 1 == len(self._vectors)

    @property
    def invariant(self) -> bool:
        """The space is as large as it gets, to rounding."""
        scale = max(map(abs, self._diagonal), default=0.0)
        return bool(self._beside) and self._beside[-1] <= _EXHAUSTED * scale

    @property
    def basis(self) -> np.ndarray:
        """(steps, n), orthonormal rows."""
        return self._vectors[: self.steps]

    def extend(self, steps: int) -> None:
        """Add up to `steps` vectors."""
        for _ in range(steps):
            if self.exhausted:
                return
            self._step()

    def ritz(self) -> Ritz:
        """The eigenvalues and eigenvectors of T = V' L V."""
        diagonal, beside = np.array(self._diagonal), np.array(self._beside[:-1])
        values, vectors = eigh_tridiagonal(diagonal, beside)
        return Ritz(values, vectors, self._beside[-1], _inverse_corner(diagonal, beside))

    def _step(self) -> None:
        last = self.steps
        vector = self._vectors[last]
        following = self._apply(vector)
        self._diagonal.append(float(vector @ following))
        following -= self._diagonal[-1] * vector
        if self._beside:
            following -= self._beside[-1] * self._vectors[last - 1]
        following = self._project(following)
        length = self._reorthogonalize(following)
        self._beside.append(length)
        if not self.invariant:
            self._vectors[last + 1] = following / length

    def _reorthogonalize(self, vector: np.ndarray) -> float:
        """Take what lies in the basis out of a vector, in place; the length that is left."""
        length = float(np.linalg.norm(vector))
        for _ in range(2):
            before = length
            vector -= (self.basis @ vector) @ self.basis
            length = float(np.linalg.norm(vector))
            if length > _CLEAN * before:
                break
        return length


def _inverse_corner(diagonal: np.ndarray, beside: np.ndarray) -> float:
    """|e_m' T^-1 e_1|: the product of the entries beside the diagonal over that of the pivots."""
    pivot, logarithm = diagonal[0], 0.0
    for entry, across in zip(diagonal[1:], beside, strict=True):
        if pivot <= 0:
            return np.inf
        logarithm += np.log(across) - np.log(pivot)
        pivot = entry - across**2 / pivot
    return float(np.exp(logarithm - np.log(pivot))) if pivot > 0 else np.inf
