"""The lowest nonzero eigenvalues of a Laplacian and their eigenvectors, by Lanczos."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from n2nfx.connectivity.elimination import Elimination
from n2nfx.connectivity.elimination_order import elimination_order
from n2nfx.connectivity.lanczos import Lanczos
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.connectivity.propagate import MOST_STEPS
from n2nfx.seeds import generator

TOLERANCE = 1e-10  # of a residual, in units of the largest eigenvalue
_CHECK = 20  # steps between two looks
_HALFWAY = MOST_STEPS // 2  # from here on, few pairs that are found will not become many
_EARLY, _MANY = 40, 16  # from here on, where so many are looked for and a solve is cheap
_CHEAP = 8  # entries of the factor for each edge
_READ = 2**33  # entries that solves read at most, above one solve a pair


@dataclass(frozen=True, eq=False)
class Bottom:
    """Eigenvalues (k,) ascending, eigenvectors (k, n) as rows, residuals (k,) ||L x - value x||.

    Each is within its residual of an eigenvalue. Of equal eigenvalues one is found. `method` is
    what found them, `tolerance` what their residuals were asked to stay below.
    """

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    method: Literal["lanczos", "shift-invert"]
    tolerance: float


def bottom(laplacian: Laplacian, count: int, seed: int) -> Bottom:
    """Up to `count` pairs, without the null space, those whose residuals are small only.

    Where 400 steps do not find half of them, or 200 an eighth (40 where many are looked for and
    the factor is small), and the factor fits into 2 GiB, by shift-invert.
    """
    if not count:
        return Bottom(np.zeros(0), np.zeros((0, laplacian.n)), np.zeros(0), "lanczos", 0.0)
    start = generator(seed, "bottom").standard_normal(laplacian.n)
    start = laplacian.project(start)
    limit = max(1, min(MOST_STEPS, laplacian.n - laplacian.components))
    tolerance = TOLERANCE * laplacian.largest
    run = Lanczos(laplacian.__matmul__, laplacian.project, start, limit)
    order = elimination_order(laplacian)
    early = count >= _MANY and order.entries <= _CHEAP * laplacian.edges
    enough = _EARLY if early else _HALFWAY
    while True:
        run.extend(_CHECK)
        ritz = run.ritz()
        lower = min(count, run.steps // 2)  # the upper end is found too, and does not count
        residuals = ritz.beyond * np.abs(ritz.vectors[-1, :lower])
        if run.exhausted or (run.steps >= 2 * count and residuals.max() <= tolerance):
            break
        if order.fits and run.steps >= enough and 8 * _small(residuals, tolerance) < count:
            break
    if order.fits and 2 * _small(residuals, tolerance) < residuals.size:
        return _inverted(laplacian, start, count, 10 / max(float(ritz.values[0]), tolerance))
    return _verified(laplacian, ritz.vectors[:, :count].T @ run.basis, "lanczos")


def _small(residuals: np.ndarray, tolerance: float) -> int:
    return int((residuals <= tolerance).sum())


def _inverted(laplacian: Laplacian, start: np.ndarray, count: int, pole: float) -> Bottom:
    """From the other end of inverse(I + pole L), which lies far from the rest.

    The pairs that lie apart are found in the first steps; how far into the dense rest of the
    spectrum later ones go on depends on what a solve costs.
    """
    factor = Elimination(laplacian, pole, 1.0, keep=True, backwards=False)
    affordable = min(4 * count, max(count, _READ // factor.entries)) + 40
    steps = min(MOST_STEPS, affordable, laplacian.n - laplacian.components)
    run = Lanczos(factor.solve, laplacian.project, start, steps)
    run.extend(steps)
    highest = run.ritz().vectors[:, ::-1][:, :count]
    return _verified(laplacian, highest.T @ run.basis, "shift-invert")


def _verified(
    laplacian: Laplacian, vectors: np.ndarray, method: Literal["lanczos", "shift-invert"]
) -> Bottom:
    """Rayleigh quotients of the vectors, in order, those with small residuals only."""
    images = (laplacian @ vectors.T).T
    values = np.sum(vectors * images, axis=1)
    residuals = np.linalg.norm(images - values[:, None] * vectors, axis=1)
    tolerance = TOLERANCE * laplacian.largest
    kept = [int(place) for place in np.argsort(values) if residuals[place] <= 2 * tolerance]
    return Bottom(values[kept], vectors[kept], residuals[kept], method, tolerance)
