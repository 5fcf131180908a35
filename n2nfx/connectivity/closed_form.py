"""Layers that are joined densely with equal weights: their spectrum and heat in closed form.

Nodes of a layer are alike, so that L maps vectors that are constant on layers to such vectors: as
the quotient, one row a layer. What sums to zero on a layer is multiplied by the layer's degree.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh

from n2nfx.connectivity.times import checked_times
from n2nfx.errors import UsageError

Weights = Mapping[tuple[int, int], float]


def chain_weights(sizes: Sequence[int], weight: float = 1.0) -> dict[tuple[int, int], float]:
    """Weights of a chain without skips: each layer with the next."""
    return {pair: weight for pair in pairwise(range(len(sizes)))}


def equal_weight_eigenvalues(sizes: Sequence[int], weights: Weights) -> np.ndarray:
    """(n,) the eigenvalues of L, ascending, of layers joined by `weights[layer, layer]`.

    Those of the quotient, and each layer's degree, one fewer times than it has nodes. Exact up to
    rounding, in time that does not depend on n. Raises `UsageError` for sizes below 1, layers that
    do not exist, and weights that are negative or not finite.
    """
    degrees, quotient = _quotient(sizes, weights)
    multiplicities = np.asarray(sizes) - 1
    own = np.repeat(degrees, multiplicities)
    return np.sort(np.concatenate([np.maximum(eigh(quotient, eigvals_only=True), 0.0), own]))


def equal_weight_signature(
    sizes: Sequence[int], weights: Weights, times: ArrayLike, source: int = 0
) -> np.ndarray:
    """(T, n) the heat S(t) = exp(-t L) A at finite times, A being 1 on the layer `source`.

    Raises `UsageError` as `equal_weight_eigenvalues` does, and for times that are not 0 or more.
    """
    _, quotient = _quotient(sizes, weights)
    at = checked_times(times)
    if not np.isfinite(at).all():
        raise UsageError("the closed form is for finite times")
    if not 0 <= source < len(sizes):
        raise UsageError(f"no layer {source}: there are {len(sizes)}")
    values, vectors = eigh(quotient)
    values[values <= np.finfo(np.float64).eps * len(sizes) * values[-1]] = 0.0
    heat = np.exp(-np.multiply.outer(at, values)) * (vectors[source] * np.sqrt(sizes[source]))
    layers = heat @ vectors.T / np.sqrt(sizes)
    return np.repeat(layers, sizes, axis=1)


def _quotient(sizes: Sequence[int], weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """The degree of every layer's nodes, and the quotient Laplacian, made symmetric."""
    count = len(sizes)
    if not count or min(sizes) < 1:
        raise UsageError(f"every layer must have a node, and there must be one: {list(sizes)}")
    joined = np.zeros((count, count))
    for (one, other), weight in weights.items():
        if not (0 <= one < count and 0 <= other < count and one != other):
            raise UsageError(f"no layers {one} and {other} to join: there are {count}")
        if not (np.isfinite(weight) and weight >= 0):
            raise UsageError(f"the weight of {one} and {other} must be 0 or more, not {weight}")
        if joined[one, other]:
            raise UsageError(f"layers {one} and {other} have two weights")
        joined[one, other] = joined[other, one] = weight
    degrees = joined @ np.asarray(sizes)
    roots = np.sqrt(sizes)
    return degrees, np.diag(degrees) - roots[:, None] * joined * roots
