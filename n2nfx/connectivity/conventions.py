"""What a time of diffusion is measured in: the scale of the weights is a scale of time."""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.spectrum import smallest_nonzero
from n2nfx.errors import UsageError, did_you_mean

Convention = Literal["reference", "degree", "absolute"]
TAU = (0.1, 1.0, 5.0, 20.0)
"""Times in units of a convention, unless others are asked for."""

_UNITS = ("reference", "degree")


def scaled(convention: str, tau: Iterable[float], graph: ChannelGraph) -> np.ndarray:
    """Absolute times (T,) from times in units of a convention, which the graph gives.

    "reference" is tau over the graph's smallest nonzero eigenvalue, "degree" tau over its mean
    degree. Raises `UsageError` for another convention, for times that cannot be, and for a graph
    without an edge, which has no unit.
    """
    if convention not in _UNITS:
        raise UsageError(
            f"there is no convention of time {convention!r}{did_you_mean(convention, _UNITS)}; "
            f"there is {' and '.join(_UNITS)}, or give absolute times"
        )
    units, degree = absolute(tau, "tau"), mean_degree(graph)
    return units / (degree if convention == "degree" else smallest_nonzero(graph).value)


def absolute(times: Iterable[float], name: str = "times") -> np.ndarray:
    """Times (T,) as float64; raises `UsageError` for none, and for negative or infinite ones."""
    given = list(times)
    try:
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.ndim != 1 or not found.size:
        raise UsageError(f"{name} must be one or more numbers in a row, not {given!r}")
    wrong = found[~(np.isfinite(found) & (found >= 0))]
    if wrong.size:
        raise UsageError(f"{name} must be finite and not negative, not {wrong[0]:g}")
    return found


def mean_degree(graph: ChannelGraph) -> float:
    """The mean of the nodes' degrees; raises `UsageError` for a graph without an edge."""
    mean = float(graph.degrees.mean())
    if not mean:
        raise UsageError("a graph without an edge has no unit of time: give absolute times")
    return mean
