"""What a time of diffusion is measured in: the scale of the weights is a scale of time."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.spectrum import Smallest, smallest_nonzero
from n2nfx.errors import CannotOperate, UsageError, did_you_mean

Convention = Literal["reference", "degree", "absolute"]
TAU = (0.1, 1.0, 5.0, 20.0)
"""Times in units of a convention, unless others are asked for."""

_UNITS = ("reference", "degree")


@dataclass(frozen=True)
class Unit:
    """What a time is counted in: `scale` a unit, and the eigenvalue that it came from, if one."""

    scale: float
    smallest: Smallest | None = None


def unit_of(convention: str, graph: ChannelGraph, smallest: Smallest | None = None) -> Unit:
    """The unit of time that a graph gives: t = tau / scale.

    By "reference" the scale is its smallest nonzero eigenvalue, which is found where it is not
    given, by "degree" its mean degree. Raises `UsageError` for another convention, and for a graph
    without an edge, which has no unit, and `CannotOperate` where rounding hides the eigenvalue.
    """
    if convention not in _UNITS:
        raise UsageError(
            f"there is no convention of time {convention!r}{did_you_mean(convention, _UNITS)}; "
            f"there is {' and '.join(_UNITS)}, or give absolute times"
        )
    degree = mean_degree(graph)
    if convention == "degree":
        return Unit(degree)
    smallest = smallest or smallest_nonzero(graph)
    if not smallest.value:
        raise CannotOperate(
            "rounding hides the smallest nonzero eigenvalue from zero, so that it is no unit of "
            "time: take the convention degree, or absolute times"
        )
    return Unit(smallest.value, smallest)


def absolute(times: Iterable[float], name: str = "times") -> np.ndarray:
    """Times (T,) as float64; raises `UsageError` for none, and for negative or infinite ones."""
    given: object = times
    try:
        given = list(times)
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
