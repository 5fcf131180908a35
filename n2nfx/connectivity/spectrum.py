"""The smallest nonzero eigenvalue of a graph, and how many lie below a number: certified."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.linalg import eigh, ldl

from n2nfx.connectivity.bottom import bottom
from n2nfx.connectivity.elimination import Elimination, UnstablePivots, negative
from n2nfx.connectivity.elimination_order import elimination_order
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.errors import CannotOperate, UsageError, require_number

_DENSE = 400  # nodes, whose eigenvalues are found in no time
_WHOLE = 8_000  # nodes, whose matrix is factored as one block where groups do not do
_ROUNDING = 64 * float(np.finfo(np.float64).eps)  # of counts, in units of the largest eigenvalue
_SEEDS = 3  # starts that are tried before a count that disagrees is told


@dataclass(frozen=True)
class Smallest:
    """The smallest nonzero eigenvalue: lambda_2 of a connected graph.

    There is an eigenvalue within `residual` of `value`. Where `certified`, none between it and the
    null space was missed: as many lie below it as the graph has `components`. `tolerance` is what
    the residual was asked to stay below.
    """

    value: float
    certified: bool
    components: int
    residual: float
    method: Literal["dense", "lanczos", "shift-invert"]
    tolerance: float
    seed: int


def smallest_nonzero(graph: ChannelGraph, *, certify: bool = False, seed: int = 0) -> Smallest:
    """The smallest eigenvalue of L outside of the null space, which the components give exactly.

    All eigenvalues up to 400 nodes, else by Lanczos from a random start, or shift-invert where the
    graph is stiff. `certify` counts the eigenvalues below it by one factorization (Sylvester).
    Raises `CannotOperate` for a graph without edges, where no method finds it, and where the count
    cannot be had.
    """
    laplacian = Laplacian(graph)
    if laplacian.components == laplacian.n:
        raise CannotOperate("the graph has no edges, so all its eigenvalues are zero")
    if laplacian.n <= _DENSE:
        return _dense(laplacian, seed)
    if not certify:
        return _found(laplacian, seed)
    for start in range(seed, seed + _SEEDS):
        found = _found(laplacian, start)
        below = found.value - found.residual - _ROUNDING * laplacian.largest
        if below <= 0:
            raise CannotOperate(f"rounding hides {found.value:g} from zero; it cannot be certified")
        if _inertia(laplacian, below) == laplacian.components:
            return replace(found, certified=True)
    raise CannotOperate("Lanczos missed an eigenvalue from every start that was tried")


def inertia(graph: ChannelGraph, sigma: float) -> int:
    """How many eigenvalues of L lie below sigma, exact where none is within rounding of it.

    By block LDL' over the groups (Sylvester's law of inertia), n^3 of time at worst. Raises
    `CannotOperate` where the factor takes more than 2 GiB, or sigma is too near to an eigenvalue of
    a part of the graph.
    """
    require_number("sigma", sigma)
    if not np.isfinite(sigma):
        raise UsageError(f"sigma must be finite, not {sigma}")
    return _inertia(Laplacian(graph), sigma)


def _inertia(laplacian: Laplacian, sigma: float) -> int:
    if not elimination_order(laplacian).fits:
        raise CannotOperate("counting eigenvalues takes a factor of more than 2 GiB here")
    for backwards in (False, True):
        try:
            return Elimination(laplacian, 1.0, -sigma, keep=False, backwards=backwards).negative
        except UnstablePivots:
            continue
    if laplacian.n > _WHOLE:
        raise CannotOperate(
            f"{sigma:g} is too near to an eigenvalue of a part of the graph; move it a little"
        )
    whole = laplacian.toarray()
    whole[np.diag_indices(laplacian.n)] -= sigma
    _, middle, _ = ldl(whole, overwrite_a=True, check_finite=False)
    return negative(middle.diagonal(), middle.diagonal(1))


def _dense(laplacian: Laplacian, seed: int) -> Smallest:
    values = eigh(laplacian.toarray(), eigvals_only=True, check_finite=False)
    rounding = float(np.finfo(np.float64).eps) * laplacian.n * laplacian.largest
    value = max(float(values[laplacian.components]), 0.0)
    known = value > rounding
    return Smallest(value, known, laplacian.components, rounding, "dense", rounding, seed)


def _found(laplacian: Laplacian, seed: int) -> Smallest:
    found = bottom(laplacian, 1, seed)
    if not found.values.size:
        raise CannotOperate("the smallest nonzero eigenvalue was not found: the graph is too stiff")
    value, residual = float(found.values[0]), float(found.residuals[0])
    return Smallest(
        value, False, laplacian.components, residual, found.method, found.tolerance, seed
    )
