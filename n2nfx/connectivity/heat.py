"""Heat over a channel graph: S(t) = exp(-t L) A for many t, certified, and exact at infinity."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from n2nfx.connectivity.chebyshev import Series, first_below
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.connectivity.propagate import Decay, Method, Propagated, propagate
from n2nfx.connectivity.times import checked_times
from n2nfx.errors import CannotOperate, UsageError, did_you_mean, require_number

_SHARE = 1e-3  # of the target, to which R is certified at a saturation time
_TRIES = 6


@dataclass(frozen=True, eq=False)
class Heat:
    """Heat signatures S(t) = exp(-t L) A (Eq. 5) of one graph.

    `times` (T,) in units of one over a weight; `signature` (T, n); `certificate` (T,) bounds the
    2-norm of each signature's error; `saturated` (n,) is S(inf), exact: the mean of A over every
    component. `residual` (T,) is R(t) = ||S(t) - S(inf)||, known to the certificate. `method` is
    what found them (`components` where A is saturated from the start), `tolerance` what was asked
    for and `products` how many products with L, or solves, it took.
    """

    times: np.ndarray
    signature: np.ndarray
    certificate: np.ndarray
    saturated: np.ndarray
    residual: np.ndarray
    components: int
    method: str
    tolerance: float
    products: int
    _problem: "_Problem" = field(repr=False)
    _decay: Decay | None = field(repr=False)

    def at(self, places: slice) -> "Heat":
        """The same at some of its times; `method` and `products` stay those of the whole run."""
        return replace(
            self,
            times=self.times[places],
            signature=self.signature[places],
            certificate=self.certificate[places],
            residual=self.residual[places],
        )

    def saturation_time(self, eps: float) -> float:
        """The first t at which R(t) <= eps ||A||, R being certified there to a thousandth of that.

        0 where the heat starts so near to its end. Raises `UsageError` for an eps that is not
        positive, and `CannotOperate` where R cannot be known that well.
        """
        require_number("eps", eps)
        if not (np.isfinite(eps) and eps > 0):
            raise UsageError(f"eps must be positive and finite, not {eps}")
        target = eps * self._problem.length
        if np.linalg.norm(self._problem.start) <= target:
            return 0.0
        if self.method == "chebyshev":
            return self._walked(target)
        decay = self._decay
        for _ in range(_TRIES):
            assert decay is not None
            at = _crossing(decay, target)
            if decay.errors(np.array([at]))[0] <= _SHARE * target:
                return at
            decay = self._problem.solve(np.array([at]), _SHARE * target / 2, "auto").decay
        raise self._unknown(eps)

    def _walked(self, target: float) -> float:
        problem = self._problem
        series = Series(problem.apply, problem.laplacian.largest, _SHARE * target / problem.length)
        found = first_below(series, problem.start, target)
        if found is None:
            raise self._unknown(target / problem.length)
        return found

    def _unknown(self, eps: float) -> CannotOperate:
        return CannotOperate(
            f"when R(t) falls below {eps:g} ||A|| cannot be certified on this graph; "
            "take a larger eps"
        )


def heat(
    graph: ChannelGraph,
    times: ArrayLike,
    tol: float = 1e-10,
    *,
    sources: ArrayLike | None = None,
    method: Method = "auto",
) -> Heat:
    """The heat at every time, t = inf included, from A = 1 at `sources` (the inputs by default).

    All times come from one Lanczos run (`auto`), by shift-invert where the graph is stiff and by
    Chebyshev above 300,000 nodes; where an error of `tol` cannot be reached, the certificate says
    what was. Memory is one vector of n a step, some hundred of them; time is linear in the edges.
    Raises `UsageError` for no times, for negative or NaN ones, for a tolerance that is not
    positive, and where nothing is a source. Source: METHOD.md section 4 (Eqs. 3 to 5).
    """
    at = checked_times(times)
    require_number("the tolerance", tol)
    if not (np.isfinite(tol) and tol > 0):
        raise UsageError(f"the tolerance must be positive and finite, not {tol}")
    if method not in get_args(Method):
        near = did_you_mean(str(method), get_args(Method))
        raise UsageError(f"no method {method!r}; take {', '.join(get_args(Method))}{near}")
    problem = _Problem.of(graph, sources)
    finite = np.isfinite(at)
    signature = np.tile(problem.saturated, (at.size, 1))
    certificate = np.full(at.size, problem.rounding)
    residual = np.zeros(at.size)
    if not problem.start.any():
        return problem.result(at, signature, certificate, residual, tol, None)
    found = problem.solve(at[finite] if finite.any() else np.zeros(1), tol, method)
    if finite.any():
        signature[finite] += found.vectors
        certificate[finite] += found.errors
        residual[finite] = found.lengths
    return problem.result(at, signature, certificate, residual, tol, found)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Heat from some sources: what stays for ever, and what decays."""

    laplacian: Laplacian
    saturated: np.ndarray
    start: np.ndarray
    length: float

    @classmethod
    def of(cls, graph: ChannelGraph, sources: ArrayLike | None) -> "_Problem":
        given = graph.sources if sources is None else _checked_sources(sources, graph.n)
        if not given.any():
            raise UsageError(
                "nothing is a source: the graph has no input; give sources=, an (n,) indicator"
            )
        laplacian = Laplacian(graph)
        saturated = laplacian.means(given)
        start = laplacian.project(given - saturated)
        return cls(laplacian, saturated, start, float(np.linalg.norm(given)))

    @property
    def rounding(self) -> float:
        """A bound of what rounding does to the saturated signature."""
        return float(np.finfo(np.float64).eps * self.length)

    def apply(self, x: np.ndarray) -> np.ndarray:
        return self.laplacian.project(self.laplacian @ x)

    def solve(self, times: np.ndarray, tol: float, method: Method) -> Propagated:
        return propagate(self.laplacian, self.start, times, tol, method)

    def result(
        self,
        times: np.ndarray,
        signature: np.ndarray,
        certificate: np.ndarray,
        residual: np.ndarray,
        tol: float,
        found: Propagated | None,
    ) -> Heat:
        return Heat(
            times=times,
            signature=signature,
            certificate=certificate,
            saturated=self.saturated,
            residual=residual,
            components=self.laplacian.components,
            method=found.method if found else "components",
            tolerance=tol,
            products=found.products if found else 0,
            _problem=self,
            _decay=found.decay if found else None,
        )


def _checked_sources(sources: ArrayLike | Sequence[bool], n: int) -> np.ndarray:
    try:
        given = np.asarray(sources, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"sources must be numbers: {error}") from None
    if given.shape != (n,):
        raise UsageError(f"sources have shape {given.shape}; the graph has {n} nodes")
    if not np.isin(given, (0.0, 1.0)).all():
        raise UsageError("sources are an indicator: 1 at a source and 0 elsewhere")
    return given


def _crossing(decay: Decay, target: float) -> float:
    """The time at which what decays is as long as `target`, below where it starts; by bisection."""

    def above(time: float) -> bool:
        return bool(decay.lengths(np.array([time]))[0] > target)

    late = 1 / decay.largest
    while above(late):
        late *= 2
    early = 0.0
    while late - early > 1e-12 * late:
        middle = (early + late) / 2
        early, late = (middle, late) if above(middle) else (early, middle)
    return late
