"""Two channel graphs of one network compared by their heat: the paper's F, and what it leaves out.

F (Eq. 6) has no sign and one time: at an absolute t it measures weight scale more than paths, and
a network that saturates before its reference is as far away as one that saturates after it. So F
is given at declared times in two conventions, beside saturation times, which do have a sign.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from n2nfx.connectivity.conventions import TAU, Convention, absolute, mean_degree, unit_of
from n2nfx.connectivity.difference import difference
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.heat import Heat
from n2nfx.connectivity.matrix_frobenius import MatrixFrobenius, matrix_frobenius
from n2nfx.connectivity.matrix_frobenius import Method as MatrixMethod
from n2nfx.connectivity.propagate import Method
from n2nfx.connectivity.spectrum import Smallest
from n2nfx.connectivity.times import spans
from n2nfx.errors import CannotOperate, UsageError, require_kind, require_number

Times = Literal["reference", "degree"] | Iterable[float]
THRESHOLD = 0.01
"""The share of ||A|| at which heat counts as saturated."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The heat of one graph at declared times.

    `times` (T,) are absolute, `tau` the same in units of the convention, empty for "absolute".
    `smallest` is the nonzero eigenvalue that was a unit of time, where one was.
    """

    graph: ChannelGraph
    convention: Convention
    tau: tuple[float, ...]
    times: np.ndarray
    heat: Heat
    threshold: float
    smallest: Smallest | None = None

    @cached_property
    def saturation_time(self) -> float:
        """The t from which on R(t) is at most the threshold's share of ||A||_2.

        NaN where R cannot be certified so far down.
        """
        try:
            return self.heat.saturation_time(self.threshold)
        except CannotOperate:
            return math.nan

    @property
    def unreached(self) -> int:
        """Nodes that heat never reaches: those of components without a source."""
        return int(np.count_nonzero(self.heat.saturated == 0))


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far a graph's heat is from its reference's, and every number that this depends on.

    Arrays are (T,), an entry for each time; pairs are (reference, graph). `frobenius` is F(t) =
    ||S_reference(t) - S_graph(t)||_2 (Eq. 6), right within `certificate`; `frobenius_saturated` is
    F at t = infinity, exact, from components.
    """

    reference: Measured
    graph: Measured
    frobenius: np.ndarray
    frobenius_saturated: float

    @property
    def convention(self) -> Convention:
        """What the times are measured in."""
        return self.reference.convention

    @property
    def tau(self) -> tuple[float, ...]:
        """The times in units of the convention; none for absolute ones."""
        return self.reference.tau

    @property
    def times(self) -> np.ndarray:
        """Absolute times of the reference."""
        return self.reference.times

    @property
    def times_of_graph(self) -> np.ndarray:
        """Absolute times of the graph: the reference's, but for the convention "degree"."""
        return self.graph.times

    @property
    def certificate(self) -> np.ndarray:
        """What F(t) may be wrong by: the sum of both heats' error bounds."""
        return self.reference.heat.certificate + self.graph.heat.certificate

    @property
    def bound(self) -> float:
        """sqrt(2 a) with a sources, which no F exceeds: 0 <= S <= 1, and both sum up to a."""
        return math.sqrt(2.0 * float(self.reference.graph.sources.sum()))

    @property
    def components(self) -> tuple[int, int]:
        """Connected components of both; F at infinity may be 0 however many there are."""
        return self.reference.heat.components, self.graph.heat.components

    @property
    def unreached(self) -> tuple[int, int]:
        """Nodes of both that no source is connected to."""
        return self.reference.unreached, self.graph.unreached

    @property
    def residual(self) -> tuple[np.ndarray, np.ndarray]:
        """R(t) = ||S(t) - S(infinity)||_2 of both, each at its own times."""
        return self.reference.heat.residual, self.graph.heat.residual

    @property
    def saturation_time(self) -> tuple[float, float]:
        """The absolute t of both from which on R(t) is at most the threshold's share of ||A||_2."""
        return self.reference.saturation_time, self.graph.saturation_time

    @property
    def saturation_time_ratio(self) -> float:
        """The graph's saturation time over the reference's: below 1, heat spreads faster.

        By "degree" each is first counted in units of 1 / its own mean degree, so that the scale of
        weights drops out. Graphs with different `components` are saturated in different states, and
        what is cut off needs no time: then it is no measure. NaN where neither needs any, and where
        one is not known.
        """
        needed = zip(self.saturation_time, (self.reference.graph, self.graph.graph), strict=True)
        reference, graph = (
            time * (mean_degree(one) if self.convention == "degree" else 1.0)
            for time, one in needed
        )
        if reference:
            return graph / reference
        return math.inf if graph > 0 else math.nan

    @property
    def dead_channels(self) -> int | None:
        """Channels of the graph's network on no path from input to output, where it is known."""
        return self.graph.graph.dead_channels

    @property
    def direct_density(self) -> float | None:
        """Kept weights of the graph's network over N, where it is known."""
        return self.graph.graph.density

    @property
    def effective_density(self) -> float | None:
        """Those of them that lie on a path from input to output, over N, where it is known."""
        return self.graph.graph.effective_density

    @property
    def method(self) -> tuple[str, str]:
        """How both heats were computed."""
        return self.reference.heat.method, self.graph.heat.method

    @property
    def tolerance(self) -> float:
        """What both heats were asked to be right to."""
        return self.reference.heat.tolerance

    def matrix(self, method: MatrixMethod = "auto", seed: int = 0) -> tuple[MatrixFrobenius, ...]:
        """||H_reference(t) - H_graph(t)||_F at every time: heat from every node, not from sources.

        Raises `UsageError` by "degree", where the two graphs have different times.
        """
        if self.convention == "degree":
            raise UsageError("the matrix variant of F has one time for both graphs, not a degree")
        one, other, tol = self.reference.graph, self.graph.graph, self.tolerance
        return tuple(
            matrix_frobenius(one, other, float(time), tol, method=method, seed=seed)
            for time in self.times
        )


def compare(
    reference: ChannelGraph,
    graph: ChannelGraph,
    times: Times = "reference",
    *,
    tau: Iterable[float] = TAU,
    threshold: float = THRESHOLD,
    tol: float = 1e-10,
    method: Method = "auto",
) -> Comparison:
    """How far the heat of a graph is from that of its reference, at declared times.

    `times` says what t is: "reference", tau over the reference's smallest nonzero eigenvalue, the
    same t for both graphs (as the paper has it); "degree", tau over each graph's own mean degree,
    which takes the scale of weights away; or absolute times, and then tau is not read. `threshold`
    is the share of ||A|| at which heat counts as saturated; `tol` and `method` are those of heat.
    Raises `UsageError` for graphs of two different networks, with what differs, and for times that
    cannot be.
    """
    require_one_network(reference, graph)
    (measured,) = measure(reference, (times,), tau=tau, threshold=threshold, tol=tol, method=method)
    (found,) = compare_with((measured,), graph, method=method)
    return found


def measure(
    graph: ChannelGraph,
    clocks: tuple[Times, ...],
    *,
    tau: Iterable[float] = TAU,
    threshold: float = THRESHOLD,
    tol: float = 1e-10,
    method: Method = "auto",
    smallest: Smallest | None = None,
) -> tuple[Measured, ...]:
    """The heat of one graph, at times of which it is the reference, by several clocks in one run.

    Arguments are those of `compare`, and each of the `clocks` one of its `times`; `smallest` is the
    graph's smallest nonzero eigenvalue, where that is known already.
    """
    require_number("threshold", threshold)
    if not 0.0 < threshold < 1.0:
        raise UsageError(f"threshold must be between 0 and 1, not {threshold}")
    units = any(isinstance(clock, str) for clock in clocks)
    counts = absolute(tau, "tau") if units else np.zeros(0)
    read = [_Reading.of(graph, clock, counts, smallest) for clock in clocks]
    heats = _heats(graph, [one.times for one in read], tol, method)
    return tuple(
        Measured(graph, one.convention, one.tau, one.times, heat, threshold, one.smallest)
        for one, heat in zip(read, heats, strict=True)
    )


def compare_with(
    references: Sequence[Measured], graph: ChannelGraph, *, method: Method = "auto"
) -> tuple[Comparison, ...]:
    """As `compare`, with what `measure` gave of the reference: many graphs, and it once."""
    for one in references:
        require_one_network(one.graph, graph)
    times = [_times_of(graph, one) for one in references]
    heats = _heats(graph, times, references[0].heat.tolerance, method)
    return tuple(
        Comparison(
            reference=one,
            graph=Measured(graph, one.convention, one.tau, at, heat, one.threshold),
            frobenius=np.linalg.norm(one.heat.signature - heat.signature, axis=1),
            frobenius_saturated=float(np.linalg.norm(one.heat.saturated - heat.saturated)),
        )
        for one, at, heat in zip(references, times, heats, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Reading:
    """What one clock says: fields as in `Measured`."""

    convention: Convention
    tau: tuple[float, ...]
    times: np.ndarray
    smallest: Smallest | None

    @classmethod
    def of(
        cls, graph: ChannelGraph, clock: Times, tau: np.ndarray, smallest: Smallest | None
    ) -> "_Reading":
        if not isinstance(clock, str):
            return cls("absolute", (), absolute(clock), None)
        unit = unit_of(clock, graph, smallest)
        return cls(clock, tuple(tau.tolist()), tau / unit.scale, unit.smallest)


def _times_of(graph: ChannelGraph, reference: Measured) -> np.ndarray:
    """The times at which a graph is compared with its reference."""
    if reference.convention == "degree":
        return absolute(reference.tau) / unit_of("degree", graph).scale
    return reference.times


def _heats(
    graph: ChannelGraph, times: Sequence[np.ndarray], tol: float, method: Method
) -> list[Heat]:
    """Heat at all times, from one run."""
    whole = graph.heat(np.concatenate(times), tol, method=method)
    return [whole.at(part) for part in spans(times)]


def require_one_network(reference: ChannelGraph, graph: ChannelGraph) -> None:
    """Raise `UsageError` for graphs of two different networks, with what differs."""
    for one in (reference, graph):
        require_kind(one, ChannelGraph, "graphs are compared, n2nfx.channel_graph(network)")
    if found := difference(reference, graph):
        raise UsageError(f"these are graphs of two different networks: {found}")
