"""What `n2nfx analyze` finds of the graphs it is given: loaded, measured, compared, drawn."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from n2nfx.connectivity import channel_graph
from n2nfx.connectivity.bipartite import LayerSpectrum, layer_spectra
from n2nfx.connectivity.compare import Comparison, Measured, compare_with, measure
from n2nfx.connectivity.files import SUFFIXES, load_graph
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.scree import Scree
from n2nfx.connectivity.spectrum import Smallest, smallest_nonzero
from n2nfx.errors import UsageError
from n2nfx.loading import load
from n2nfx.network import Network, Origin
from n2nfx.source import network_of

_log = logging.getLogger("n2nfx.analyze")
_EXACT = 2_000  # nodes up to which alpha is exact unless asked otherwise: a second or two
_POINTS = 60  # of a curve in a picture


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of `analyze`, as on the command line."""

    one: str
    other: str | None
    reference: str | None
    weight: Any
    residual: Any
    strict: bool
    times: tuple[float, ...] | None
    tau: tuple[float, ...]
    time_convention: str
    k: tuple[float, ...]
    alpha: str
    zero_modes: Any
    matrix: bool
    layers: bool
    seed: int | None
    model: str | None
    num_classes: int | None
    input_shape: tuple[int, ...] | None

    @property
    def conventions(self) -> tuple[Any, ...]:
        """What `measure` takes as times, one after the other."""
        if self.times is not None:
            return (self.times,)
        return ("reference", "degree") if self.time_convention == "both" else (self.time_convention,)


@dataclass(frozen=True, eq=False)
class Subject:
    """One graph by its name, and what is computed of it alone.

    `measured` has its heat in every convention of time, and `curves` alpha at the same times;
    there are none, and no `layers`, where they were not asked for.
    """

    name: str
    graph: ChannelGraph
    smallest: Smallest | None
    measured: tuple[Measured, ...]
    curves: tuple[Scree, ...]
    layers: tuple[LayerSpectrum, ...]


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that was found: the reference comes first, where anything is compared.

    `comparisons` has, for every other subject, one comparison a convention; `graph_of_a` is the
    graph of the first argument.
    """

    subjects: tuple[Subject, ...]
    comparisons: tuple[tuple[Comparison, ...], ...]
    graph_of_a: ChannelGraph


def study(**given: Any) -> Study:
    """Load, measure and compare what was asked for.

    Raises `UsageError` for arguments that cannot be, `CannotOperate` for a model, and
    `DamagedFile` for a file.
    """
    asked = Asked(**given)
    graphs = _graphs(asked)
    names = list(graphs)
    reference, *others = graphs.values()
    measured = [_measured(names[0], reference, asked)]
    comparisons = []
    for name, graph in zip(names[1:], others, strict=True):
        _log.info("heat of %s", name)
        found = tuple(compare_with(one, graph) for one in measured[0])
        comparisons.append(found)
        measured.append(tuple(one.graph for one in found))
    subjects = [
        _subject(name, graph, own, asked)
        for (name, graph), own in zip(graphs.items(), measured, strict=True)
    ]
    return Study(tuple(subjects), tuple(comparisons), graphs[asked.one])


def _measured(name: str, graph: ChannelGraph, asked: Asked) -> tuple[Measured, ...]:
    _log.info("heat of %s", name)
    return tuple(measure(graph, one, tau=asked.tau) for one in asked.conventions)


def _subject(
    name: str, graph: ChannelGraph, measured: tuple[Measured, ...], asked: Asked
) -> Subject:
    curves: tuple[Scree, ...] = ()
    if asked.alpha != "none" and graph.n > 1:
        _log.info("alpha of %s", name)
        curves = tuple(_curve(graph, one.times, asked) for one in measured)
    return Subject(
        name=name,
        graph=graph,
        smallest=smallest_nonzero(graph) if graph.edges else None,
        measured=measured,
        curves=curves,
        layers=layer_spectra(graph) if asked.layers else (),
    )


def _curve(graph: ChannelGraph, times: np.ndarray, asked: Asked) -> Scree:
    method = asked.alpha
    if method == "auto":
        method = "dense" if graph.n <= _EXACT else "slq"
    return graph.scree(
        asked.k, times, method=method, zero_modes=asked.zero_modes, seed=asked.seed or 0
    )


def _graphs(asked: Asked) -> dict[str, ChannelGraph]:
    """The graphs by name, the reference first."""
