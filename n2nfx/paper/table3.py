"""Table 3 under declared conventions: F of every pruned network beside what the paper prints."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from n2nfx.connectivity.compare import Measured, compare_with, measure
from n2nfx.connectivity.conventions import TAU
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.paper.order import Agreement, Figure, agreement, agrees
from n2nfx.paper.printed import Place, table3

_CONVENTIONS = ("reference", "degree")
_SATURATED = "infinity"
_TWIN = {
    "rp": "n2nskip-rp",
    "n2nskip-rp": "rp",
    "csp": "n2nskip-csp",
    "n2nskip-csp": "csp",
}


@dataclass(frozen=True)
class Cell:
    """One cell of Table 3, computed.

    `figures` are F and its certificate by reading: a convention and tau ("reference 5"), and
    "infinity". `times` are the absolute t of the reference and of the graph by reading. `ratios`
    are saturation times over the reference's by convention: below 1, heat spreads faster; None
    where there is nothing to spread.
    """

    place: Place
    figures: Mapping[str, Figure]
    times: Mapping[str, tuple[float, float]]
    ratios: Mapping[str, float | None]
    nodes: int
    edges: int
    components: int
    unreached: int
    dead_channels: int | None
    density: float | None
    effective_density: float | None

    @property
    def printed(self) -> float | None:
        """What the paper has there; None where it has nothing."""
        return table3().get(self.place)

    def as_data(self) -> dict[str, Any]:
        """All of it, as JSON data."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """The cell that was written as such data."""
        own = {
            "place": Place(*data["place"]),
            "figures": {name: Figure(*figure) for name, figure in data["figures"].items()},
            "times": {name: tuple(pair) for name, pair in data["times"].items()},
        }
        return cls(**{**data, **own})


def cells(
    network: str,
    reference: ChannelGraph,
    pruned: Iterable[tuple[str, float, ChannelGraph]],
    *,
    tau: Iterable[float] = TAU,
) -> Iterator[Cell]:
    """The cells of one network, one after the other, from (method, density, pruned graph).

    The heat of the reference is computed once. Raises as `compare`.
    """
    heats = measured(reference, tau=tau)
    for method, density, graph in pruned:
        yield cell(Place(network, method, density), heats, graph)


def measured(reference: ChannelGraph, *, tau: Iterable[float] = TAU) -> tuple[Measured, ...]:
    """The heat of a reference in each convention, to compare any number of graphs with."""
    return measure(reference, _CONVENTIONS, tau=tau)


def cell(place: Place, reference: Sequence[Measured], graph: ChannelGraph) -> Cell:
    """One cell, of a graph and what was measured of its reference. Raises as `compare`."""
    found = compare_with(reference, graph)
    figures: dict[str, Figure] = {}
    times: dict[str, tuple[float, float]] = {}
    for one in found:
        for at, tau in enumerate(one.tau):
            reading = f"{one.convention} {tau:g}"
            figures[reading] = Figure(float(one.frobenius[at]), float(one.certificate[at]))
            times[reading] = float(one.times[at]), float(one.times_of_graph[at])
    first = found[0]
    return Cell(
        place=place,
        figures={**figures, _SATURATED: Figure(first.frobenius_saturated)},
        times=times,
        ratios={one.convention: _finite(one.saturation_time_ratio) for one in found},
        nodes=graph.n,
        edges=graph.edges,
        components=first.components[1],
        unreached=first.unreached[1],
        dead_channels=first.dead_channels,
        density=first.direct_density,
        effective_density=first.effective_density,
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def skips_stand_as_printed(cell: Cell, cells: Iterable[Cell]) -> tuple[str, ...]:
    """The readings in which a network stands to its twin, with skips or without, as printed."""
    twin = cell.place._replace(method=_TWIN[cell.place.method])
    other = next((one for one in cells if one.place == twin), None)
    if other is None or cell.printed is None or other.printed is None:
        return ()
    printed = cell.printed, other.printed
    return tuple(
        reading
        for reading, figure in cell.figures.items()
        if reading in other.figures and agrees(printed, (figure, other.figures[reading]))
    )


class Orders(NamedTuple):
    """How many pairs of cells of one network stand as printed.

    `skips` are pairs of one pruning with skips and without, `methods` all pairs of methods at one
    density (those among them), `densities` all pairs of densities within one method.
    """

    skips: Agreement
    methods: Agreement
    densities: Agreement


def orders(cells: Sequence[Cell]) -> dict[str, Orders]:
    """By reading, how much of the printed order there is in the cells of one network."""
    readings = dict.fromkeys(reading for cell in cells for reading in cell.figures)
    return {
        reading: Orders(
            skips=_total(cells, reading, _pruning_and_density),
            methods=_total(cells, reading, _density),
            densities=_total(cells, reading, _method),
        )
        for reading in readings
    }


def _pruning_and_density(place: Place) -> object:
    return place.method.removeprefix("n2nskip-"), place.density


def _density(place: Place) -> object:
    return place.density


def _method(place: Place) -> object:
    return place.method


def _total(cells: Sequence[Cell], reading: str, key: Callable[[Place], object]) -> Agreement:
    """Over all pairs of cells that have the same key."""
    groups: dict[object, dict[Place, Figure]] = {}
    for cell in cells:
        if reading in cell.figures:
            groups.setdefault(key(cell.place), {})[cell.place] = cell.figures[reading]
    found = [agreement(table3(), group) for group in groups.values()]
    return Agreement(sum(one.agreeing for one in found), sum(one.pairs for one in found))
