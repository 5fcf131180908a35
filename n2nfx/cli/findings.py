"""What an analysis found: for a person, as tables, and for a program, as JSON data."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from n2nfx.cli.analysis import Compared, Study, Subject
from n2nfx.cli.tables import console, say, table
from n2nfx.cli.text import printable
from n2nfx.connectivity.compare import Measured
from n2nfx.connectivity.matrix_frobenius import MatrixFrobenius
from n2nfx.connectivity.scree import Scree

_TOLD = 3  # hubs, and groups, that are named
_UNITS = {
    "reference": "tau / smallest nonzero eigenvalue of {}, the same for all",
    "degree": "tau / mean degree, of each graph its own",
    "absolute": "as given",
}


def as_data(found: Study) -> dict[str, Any]:
    """All numbers of it, as JSON data: what is not finite, or not known, is null."""
    return {
        "graphs": [_of_subject(one) for one in found.subjects],
        "comparisons": [_of_comparison(one) for one in found.compared],
    }


def _of_subject(one: Subject) -> dict[str, Any]:
    graph, first = one.graph, one.measured[0]
    return {
        "name": one.name,
        "nodes": graph.n,
        "edges": graph.edges,
        "sources": int(graph.sources.sum()),
        "components": first.heat.components,
        "unreached": first.unreached,
        "dead_channels": graph.dead_channels,
        "density": graph.density,
        "effective_density": graph.effective_density,
        "mean_degree": float(graph.degrees.mean()),
        "smallest_nonzero": one.smallest and asdict(one.smallest),
        "saturation_time": _finite(first.saturation_time),
        "saturation_threshold": first.threshold,
        "hubs": list(graph.hubs),
        "weight": graph.aggregation,
        "fold_norms": graph.fold_norms,
        "residual": graph.residual,
        "heat": [_of_heat(measured) for measured in one.measured],
        "alpha": [_of_curve(curve) for curve in one.curves],
        "layers": [{**asdict(layer), "gap": layer.gap} for layer in one.layers],
    }  # fmt: skip


def _of_heat(one: Measured) -> dict[str, Any]:
    return {
        "convention": one.convention,
        "tau": list(one.tau),
        "times": one.times.tolist(),
        "residual": one.heat.residual.tolist(),
        "certificate": one.heat.certificate.tolist(),
        "method": one.heat.method,
        "tolerance": one.heat.tolerance,
    }


def _of_curve(curve: Scree) -> dict[str, Any]:
    return {
        "K": list(map(float, curve.K)),
        "times": list(map(float, curve.times)),
        "alpha": curve.alpha.tolist(),
        "low": curve.low.tolist(),
        "high": curve.high.tolist(),
        "exact": curve.exact,
        "method": curve.method,
        "seed": curve.seed,
    }


def _of_comparison(compared: Compared) -> dict[str, Any]:
    one = compared.comparison
    return {
        "reference": compared.reference.name,
        "graph": compared.graph.name,
        "convention": one.convention,
        "tau": list(one.tau),
        "times": one.times.tolist(),
        "times_of_graph": one.times_of_graph.tolist(),
        "frobenius": one.frobenius.tolist(),
        "certificate": one.certificate.tolist(),
        "frobenius_saturated": one.frobenius_saturated,
        "bound": one.bound,
        "matrix": [asdict(entry) for entry in compared.matrix],
        "components": list(one.components),
        "unreached": list(one.unreached),
        "residual": [residual.tolist() for residual in one.residual],
        "saturation_time": [_finite(time) for time in one.saturation_time],
        "saturation_time_ratio": _finite(one.saturation_time_ratio),
        "dead_channels": one.dead_channels,
        "density": one.direct_density,
        "effective_density": one.effective_density,
        "method": list(one.method),
        "tolerance": one.tolerance,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def show(found: Study, files: Sequence[Path]) -> None:
    """Print what each graph is, then its heat over time, alone or against the reference."""
    out = console()
    out.print(_graphs(found.subjects))
    first = found.subjects[0]
    for place in range(len(first.measured) if not found.compared else 0):
        _show_heat(out, first, place)
    for one in found.compared:
        _show_comparison(out, one)
    for one in found.subjects:
        if one.layers:
            say(out, f"\nlayers of {printable(one.name)}, each as a bipartite graph")
            out.print(_layers(one))
    for line in _remarks(found):
        say(out, line)
    for file in files:
        say(out, f"wrote {file} ({file.stat().st_size:,} bytes)")


def _graphs(subjects: Sequence[Subject]) -> Table:
    made = table("graph", *(printable(one.name) for one in subjects), left=1)
    rows: dict[str, Callable[[Subject], str]] = {
        "nodes": lambda one: f"{one.graph.n:,}",
        "edges": lambda one: f"{one.graph.edges:,}",
        "sources": lambda one: f"{int(one.graph.sources.sum()):,}",
        "density": lambda one: _share(one.graph.density),
        "effective density": lambda one: _share(one.graph.effective_density),
        "dead channels": lambda one: _count(one.graph.dead_channels),
        "components": lambda one: f"{one.measured[0].heat.components:,}",
        "nodes without a source": lambda one: f"{one.measured[0].unreached:,}",
        "mean degree": lambda one: _number(float(one.graph.degrees.mean())),
        "smallest nonzero eigenvalue": lambda one: _number(one.smallest and one.smallest.value),
        "saturation time": lambda one: _number(one.measured[0].saturation_time),
        "hubs": lambda one: f"{len(one.graph.hubs):,}",
    }
    for name, cell in rows.items():
        made.add_row(name, *map(cell, subjects))
    return made


def _show_heat(out: Console, one: Subject, place: int) -> None:
    """The heat of one graph alone, in one convention of time."""
    measured = one.measured[place]
    say(out, f"\nt is {_unit(measured, one)}")
    columns = {
        "tau": _numbers(measured.tau),
        "t": _numbers(measured.times),
        "R(t)": _numbers(measured.heat.residual),
        "within": _numbers(measured.heat.certificate),
        **_alphas(one, place),
    }
    out.print(_table(columns))


def _show_comparison(out: Console, compared: Compared) -> None:
    """One graph against the reference in one convention of time; infinity comes last."""
    reference, one, found = compared.reference, compared.graph, compared.comparison
    names = f"{printable(one.name)} against {printable(reference.name)}"
    say(out, f"\n{names}: t is {_unit(found.reference, reference)}")
    columns = {
        "tau": [*_numbers(found.tau), *([""] if found.tau else [])],
        "t": [*_numbers(found.times), "infinity"],
        "t of graph": [*_numbers(found.times_of_graph), "infinity"],
        "F": [*_numbers(found.frobenius), _number(found.frobenius_saturated)],
        "within": [*_numbers(found.certificate), "exact"],
        "R of reference": [*_numbers(found.residual[0]), "0"],
        "R of graph": [*_numbers(found.residual[1]), "0"],
        **_late(_alphas(reference, compared.place), "reference"),
        **_late(_alphas(one, compared.place), "graph"),
        "||H - H||": [*map(_span, compared.matrix), *([""] if compared.matrix else [])],
    }
    if found.convention != "degree":
        del columns["t of graph"]
    out.print(_table(columns))
    ratio = _number(found.saturation_time_ratio)
    say(
        out,
        f"saturation time over the reference's, in this unit: {ratio} (below 1, heat spreads "
        "faster)",
    )


def _late(columns: Mapping[str, list[str]], whose: str) -> dict[str, list[str]]:
    """Columns of one of two graphs, which have nothing at infinity."""
    return {f"{name} of {whose}": [*cells, ""] for name, cells in columns.items()}


def _span(one: MatrixFrobenius) -> str:
    return _number(one.value) if one.exact else f"{one.low:.4g}..{one.high:.4g}"


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    """A table from its columns, those without a cell left out."""
    kept = {name: cells for name, cells in columns.items() if cells}
    made = table(*kept, left=0)
    for row in zip(*kept.values(), strict=True):
        made.add_row(*row)
    return made


def _unit(measured: Measured, reference: Subject) -> str:
    return _UNITS[measured.convention].format(printable(reference.name))


def _alphas(one: Subject, place: int) -> dict[str, list[str]]:
    """Columns of alpha, one a K; an estimate with its interval."""
    if not one.curves:
        return {}
    curve = one.curves[place]
    return {f"alpha {share:.3g}": _alpha(curve, row) for row, share in enumerate(curve.K)}


def _alpha(curve: Scree, row: int) -> list[str]:
    if curve.exact:
        return [f"{value:.4f}" for value in curve.alpha[row]]
    spans = zip(curve.low[row], curve.high[row], strict=True)
    return [f"{low:.4f}..{high:.4f}" for low, high in spans]


def _layers(one: Subject) -> Table:
    columns = "edges", "degree of targets", "of sources", "sigma 1", "sigma 2", "gap"
    made = table("from", "to", *columns)
    for layer in one.layers:
        numbers = (*layer.degrees, *layer.singular, layer.gap)
        cells = f"{layer.edges:,}", *_numbers(numbers)
        made.add_row(printable(layer.source), printable(layer.target), *cells)
    return made


def _remarks(found: Study) -> Iterator[str]:
    """What every number above depends on, and what it does not say."""
    reference, *others = found.subjects
    first = reference.measured[0]
    yield ""
    if found.compared:
        bound = found.compared[0].comparison.bound
        yield f"F is at most sqrt(2 * sources) = {_number(bound)}; it has no sign"
    folded = " times the scales of norms" if reference.graph.fold_norms else ""
    yield (
        f"saturation time: the t of R(t) <= {first.threshold:g} ||A||; edges weigh "
        f"{reference.graph.aggregation}{folded}, sums are {reference.graph.residual}"
    )
    methods = dict.fromkeys(one.measured[0].heat.method for one in found.subjects)
    yield f"heat by {', '.join(methods)}, asked to be right to {first.heat.tolerance:g} ||A||"
    curves = [one.curves[0] for one in found.subjects if one.curves]
    if any(not curve.exact for curve in curves):
        yield f"alpha is estimated, in 95% intervals, seed {curves[0].seed}; --alpha dense is exact"
    for one in others:
        if one.measured[0].heat.components != first.heat.components:
            yield (
                f"{printable(one.name)} and {printable(reference.name)} are in different numbers "
                "of pieces: their saturated states differ, and saturation times say little"
            )
    for one in found.subjects:
        if one.graph.hubs:
            yield f"{printable(one.name)}: {_hubs(one.graph.hubs)}"
        bare = one.graph.edgeless
        if bare:
            yield (
                f"{printable(one.name)}: no edge at all at {_first(bare)}, where weights that are "
                "all zero lead, as some are initialized: each channel is a component of its own"
            )


def _hubs(hubs: Sequence[str]) -> str:
    return f"no rule for {len(hubs)} operations, a node of its own for each: {_first(hubs)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:_TOLD])) + (", ..." if len(names) > _TOLD else "")


def _numbers(values: Iterable[float]) -> list[str]:
    return [_number(float(value)) for value in values]


def _number(value: float | None) -> str:
    return "unknown" if value is None or math.isnan(value) else f"{value:.4g}"


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4%}"
