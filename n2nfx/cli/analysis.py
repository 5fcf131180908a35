"""What `n2nfx analyze` finds of the graphs it is given: loaded, measured, compared, drawn."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from n2nfx.connectivity import channel_graph
from n2nfx.connectivity.bipartite import LayerSpectrum, layer_spectra
from n2nfx.connectivity.compare import (
    Comparison,
    Measured,
    compare_with,
    measure,
    require_one_network,
)
from n2nfx.connectivity.conventions import absolute
from n2nfx.connectivity.eigenvalues import Eigenvalues, eigenvalues
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.graph_files import SUFFIXES, load_graph
from n2nfx.connectivity.matrix_frobenius import MatrixFrobenius
from n2nfx.connectivity.scree import Scree, checked_fractions, scree_of
from n2nfx.connectivity.spectrum import Smallest, smallest_nonzero
from n2nfx.connectivity.times import spans
from n2nfx.errors import UsageError
from n2nfx.loading import load
from n2nfx.network import Network, Origin
from n2nfx.ownfile import is_file
from n2nfx.source import network_of

_log = logging.getLogger("n2nfx.analyze")
_EXACT = 2_000  # nodes up to which alpha is exact unless asked otherwise: a second or two
_POINTS = 60  # of a curve in a picture
_CURVE = 1e-3, 20.0  # its times, in units of 1 / the reference's smallest nonzero eigenvalue


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of `analyze`, as on the command line."""

    one: str
    other: str | None
    reference: str | None
    weight: Any
    residual: Any
    strict: bool
    fold_norms: bool
    times: tuple[float, ...] | None
    tau: tuple[float, ...]
    time_convention: str
    k: tuple[float, ...]
    alpha: Any
    zero_modes: Any
    matrix: bool
    layers: bool
    seed: int | None
    model: str | None
    num_classes: int | None
    input_shape: tuple[int, ...] | None
    pretrained: bool | None

    @property
    def conventions(self) -> tuple[Any, ...]:
        """What `measure` takes as times, one after the other."""
        if self.times is not None:
            return (self.times,)
        both = "reference", "degree"
        return both if self.time_convention == "both" else (self.time_convention,)


@dataclass(frozen=True, eq=False)
class Subject:
    """One graph by its name, and what is computed of it alone.

    `measured` has its heat in every convention of time, and `curves` alpha at the same times, of
    the same `eigenvalues`; there are none, and no `layers`, where they were not asked for.
    """

    name: str
    graph: ChannelGraph
    eigenvalues: Eigenvalues | None
    smallest: Smallest | None
    measured: tuple[Measured, ...]
    curves: tuple[Scree, ...]
    layers: tuple[LayerSpectrum, ...]


@dataclass(frozen=True, eq=False)
class Compared:
    """One graph against the reference in one convention of time, which is the `place`-th.

    `matrix` is the matrix variant of F; there is none where it was not asked for, or by degree.
    """

    reference: Subject
    graph: Subject
    place: int
    comparison: Comparison
    matrix: tuple[MatrixFrobenius, ...]


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that was found: the reference is the first, where anything is compared."""

    asked: Asked
    subjects: tuple[Subject, ...]
    compared: tuple[Compared, ...]

    @property
    def graph_of_a(self) -> ChannelGraph:
        """The graph of the first argument."""
        return next(one.graph for one in self.subjects if one.name == self.asked.one)


def study(**given: Any) -> Study:
    """Load, measure and compare what was asked for.

    Raises `UsageError` for arguments that cannot be, `CannotOperate` for a model, and
    `DamagedFile` for a file.
    """
    asked = Asked(**given)
    _require_numbers(asked)
    graphs = _graphs(asked)
    name, *others = graphs
    for other in others:
        require_one_network(graphs[name], graphs[other])
    reference = _reference(name, graphs[name], asked)
    found = [one for other in others for one in _compared(reference, other, graphs[other], asked)]
    subjects = dict.fromkeys([reference, *(one.graph for one in found)])
    return Study(asked, tuple(subjects), tuple(found))


def _require_numbers(asked: Asked) -> None:
    """Refuse times and shares that cannot be before anything is built, those that are read."""
    if asked.times is None:
        absolute(asked.tau, "tau")
    else:
        absolute(asked.times)
    if asked.alpha != "none":
        checked_fractions(asked.k)


def _reference(name: str, graph: ChannelGraph, asked: Asked) -> Subject:
    """The first graph, whose smallest nonzero eigenvalue may be a unit of time."""
    known = _eigenvalues(name, graph, asked)
    smallest = _smallest(graph, known)
    _log.info("heat of %s", name)
    measured = measure(graph, asked.conventions, tau=asked.tau, smallest=smallest)
    return _subject(name, graph, known, smallest, measured, asked)


def _compared(reference: Subject, name: str, graph: ChannelGraph, asked: Asked) -> list[Compared]:
    """One graph against the reference, in every convention of time."""
    known = _eigenvalues(name, graph, asked)
    _log.info("heat of %s", name)
    found = compare_with(reference.measured, graph)
    measured = tuple(one.graph for one in found)
    subject = _subject(name, graph, known, _smallest(graph, known), measured, asked)
    return [
        Compared(reference, subject, place, one, _matrix(one, asked))
        for place, one in enumerate(found)
    ]


def _matrix(one: Comparison, asked: Asked) -> tuple[MatrixFrobenius, ...]:
    if not asked.matrix or one.convention == "degree":
        return ()
    _log.info("heat of every node, by %s times", one.convention)
    method = "dense" if one.graph.graph.n <= _EXACT else "sampled"
    return one.matrix(method, asked.seed or 0)


def _subject(
    name: str,
    graph: ChannelGraph,
    known: Eigenvalues | None,
    smallest: Smallest | None,
    measured: tuple[Measured, ...],
    asked: Asked,
) -> Subject:
    curves: tuple[Scree, ...] = ()
    if known is not None:
        times = [one.times for one in measured]
        whole = _curve(known, np.concatenate(times), asked)
        curves = tuple(_part(whole, part) for part in spans(times))
    return Subject(
        name=name,
        graph=graph,
        eigenvalues=known,
        smallest=smallest,
        measured=measured,
        curves=curves,
        layers=layer_spectra(graph) if asked.layers else (),
    )


def _eigenvalues(name: str, graph: ChannelGraph, asked: Asked) -> Eigenvalues | None:
    """What alpha is made of; None where it was not asked for, and without an edge."""
    if asked.alpha == "none" or not graph.edges:
        return None
    _log.info("eigenvalues of %s", name)
    method = asked.alpha
    if method == "auto":
        method = "dense" if graph.n <= _EXACT else "slq"
    return eigenvalues(graph, method, asked.seed or 0)


def _smallest(graph: ChannelGraph, known: Eigenvalues | None) -> Smallest | None:
    """The smallest nonzero eigenvalue; None without an edge."""
    found = known.smallest if known is not None else None
    return found or (smallest_nonzero(graph) if graph.edges else None)


def _curve(known: Eigenvalues, times: np.ndarray, asked: Asked) -> Scree:
    return scree_of(known, asked.k, times, zero_modes=asked.zero_modes)


def _part(curve: Scree, places: slice) -> Scree:
    """The curve at some of its times."""
    return replace(
        curve,
        alpha=curve.alpha[:, places],
        low=curve.low[:, places],
        high=curve.high[:, places],
        times=curve.times[places],
    )


def _graphs(asked: Asked) -> dict[str, ChannelGraph]:
    """The graphs by name, the reference first.

    Artifacts come before models that are named, which are built as the first of them was.
    """
    names = [name for name in (asked.reference, asked.one, asked.other) if name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} was given twice; a graph is compared with another")
    origin, found = Origin(), dict[str, ChannelGraph]()
    for name in sorted(names, key=lambda name: not Path(name).is_dir()):
        _log.info("graph of %s", name)
        found[name], own = _graph(name, asked, origin)
        origin = own if origin == Origin() else origin
    return {name: found[name] for name in names}


def _graph(name: str, asked: Asked, origin: Origin) -> tuple[ChannelGraph, Origin]:
    """One graph, and where its network came from."""
    path = Path(name)
    if path.suffix in SUFFIXES:
        return load_graph(path), origin
    network = load(path, asked.model) if path.is_dir() else _built(name, asked, origin)
    graph = channel_graph(
        network,
        weight=asked.weight,
        residual=asked.residual,
        strict=asked.strict,
        fold_norms=asked.fold_norms,
    )
    return graph, network.origin


def _built(name: str, asked: Asked, origin: Origin) -> Network:
    """A model by what was asked, or else built as another network was.

    What comes from a file has the weights that the file gives it.
    """
    pretrained = asked.pretrained
    if pretrained is None and origin.pretrained and not is_file(name):
        _log.info("%s: with trained weights, as the artifact; or else --no-pretrained", name)
        pretrained = True
    return network_of(
        name,
        seed=origin.seed if asked.seed is None else asked.seed,
        num_classes=asked.num_classes or origin.num_classes,
        input_shape=asked.input_shape or origin.input_shape,
        pretrained="yes" if pretrained else "no",
    )


def draw(found: Study, path: Path) -> Path:
    """Draw adjacency as in Fig. 3, and over time alpha as in Fig. 4, R(t) and F(t).

    Curves run over times of their own, from early ones to where the reference is saturated.
    """
    from n2nfx.connectivity import plots

    _log.info("drawing %s", path)
    asked, graphs = found.asked, {one.name: one.graph for one in found.subjects}
    smallest = found.subjects[0].smallest
    if smallest is None:
        return plots.save(plots.adjacency(graphs), path)
    times = np.geomspace(*_CURVE, _POINTS) / smallest.value
    reference, *others = graphs
    measured = measure(graphs[reference], (times,))
    compared = {name: compare_with(measured, graphs[name])[0] for name in others}
    heats = {reference: measured[0].heat}
    heats |= {name: one.graph.heat for name, one in compared.items()}
    screes = {
        one.name: _curve(one.eigenvalues, times, asked)
        for one in found.subjects
        if one.eigenvalues is not None
    }
    return plots.save(plots.overview(graphs, screes, heats, compared), path)
