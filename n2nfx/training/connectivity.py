"""How well connected is what runs became: F beside the printed one, and Fig. 3 and Fig. 4 of it.

A network is compared with the reference of its own seed: the run that pruned nothing of the same
model on the same data. What a comparison says is kept beside the run, under the SHA-256 of both
runs' manifests, so that no report measures it again.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from n2nfx import ownfile
from n2nfx.atomic import put_file
from n2nfx.connectivity import plots
from n2nfx.connectivity.compare import Measured
from n2nfx.connectivity.conventions import TAU
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.errors import CannotOperate, N2nfxError, first_line
from n2nfx.loading import load
from n2nfx.paper import figures as paper
from n2nfx.paper import order, table3
from n2nfx.paper.networks import Setting
from n2nfx.recipe import Cell, Recipe, Run
from n2nfx.training import report as accuracies
from n2nfx.training import runresult
from n2nfx.training.printed import Spread, distance, place_of
from n2nfx.training.report import Connectivity, Report, Row, brief, percent, spread_of
from n2nfx.training.status import standing

SCHEMA = "n2nfx.run-connectivity/1"

_KEPT, _NETWORK, _MANIFEST = "connectivity.json", "network", "MANIFEST.sha256"
_SETTING = Setting()

_log = logging.getLogger(__name__)


# --- the table ---------------------------------------------------------------------------------


def report(recipe: Recipe, out: Path) -> Report:
    """The accuracies of the runs in a folder, and how far their networks are from the reference.

    A network that cannot be read is told of, and the others are compared all the same.
    """
    plain = accuracies.report(recipe, out)
    found: dict[Cell, list[table3.Cell]] = {cell: [] for cell in recipe.cells}
    odd: list[str] = []
    for reference, pruned in _trained(recipe, out):
        for run, measured in _compared(reference, pruned, out):
            if isinstance(measured, table3.Cell):
                found[run.cell].append(measured)
            else:
                odd.append(f"{run.spec.name}: cannot be compared: {measured}")
    rows = [_with(row, found[row.cell], recipe) for row in plain.rows]
    return Report(recipe, tuple(rows), (*plain.notes, *odd, *_notes(rows, found)))


def _with(row: Row, found: Sequence[table3.Cell], recipe: Recipe) -> Row:
    if row.cell.method == recipe.reference or row.final is None:
        return row
    certificates = [one.error for cell in found for one in cell.figures.values()]
    return replace(
        row,
        connectivity=Connectivity(
            distances=_spreads([{k: v.value for k, v in one.figures.items()} for one in found]),
            measures=_spreads([_measures(one) for one in found]),
            certificate=max(certificates, default=0.0),
            printed=distance(recipe.paper, row.cell),
        ),
    )


def _measures(cell: table3.Cell) -> dict[str, float]:
    """What a comparison says beside F; t is that of tau = 1, whose multiples the others are."""
    counts = {
        "components": cell.components,
        "nodes_without_source": cell.unreached,
        "dead_channels": cell.dead_channels,
        "edges": cell.edges,
        "effective_density": cell.effective_density,
        **{f"saturation_time_{name}": ratio for name, ratio in cell.ratios.items()},
        "t_reference": cell.times["reference 1"][0],
        "t_degree": cell.times["degree 1"][1],
        "t_degree_of_reference": cell.times["degree 1"][0],
    }
    return {name: float(value) for name, value in counts.items() if value is not None}


def _spreads(found: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Mean and deviation by name, over those that have it."""
    names = dict.fromkeys(name for one in found for name in one)
    spreads = {name: spread_of(one[name] for one in found if name in one) for name in names}
    return {name: spread for name, spread in spreads.items() if spread is not None}


def _notes(rows: Sequence[Row], found: Mapping[Cell, Sequence[table3.Cell]]) -> Iterator[str]:
    """What F is, at which t, and how much of the printed order there is in it."""
    yield (
        "F is the distance between the heat of a network and that of its reference: ref TAU at "
        "t = TAU / the reference's smallest nonzero eigenvalue, deg TAU at t = TAU / mean degree, "
        "of each graph its own; inf at infinity, where components alone decide"
    )
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.connectivity is not None and row.connectivity.distances:
            groups.setdefault((row.cell.model, row.cell.data), []).append(row)
    for (model, data), group in groups.items():
        where = f"{model} on {data}"
        units = [row.connectivity.measures for row in group if row.connectivity is not None]
        ref, deg = units[0]["t_reference"], units[0]["t_degree_of_reference"]
        yield f"{where}: ref 1 is t = {ref.mean:.4g}, deg 1 of the reference t = {deg.mean:.4g}"
        printed = [r.cell for r in group if r.connectivity and r.connectivity.printed is not None]
        if printed:
            yield f"{where}: {_orders([_mean(found[cell]) for cell in printed])}"
    if any(row.connectivity and row.connectivity.printed is not None for row in rows):
        yield (
            "paper: F at a t that it does not print, and beyond what F can be in part "
            "(docs/connectivity.md); nothing here is tuned to it"
        )


def _mean(cells: Sequence[table3.Cell]) -> table3.Cell:
    """A cell with the mean of F over runs."""
    figures = {
        reading: order.Figure(
            fmean(one.figures[reading].value for one in cells),
            max(one.figures[reading].error for one in cells),
        )
        for reading in cells[0].figures
    }
    return replace(cells[0], figures=figures)


def _orders(cells: Sequence[table3.Cell]) -> str:
    told = (
        f"{brief(reading)} {one.skips} {one.methods} {one.densities}"
        for reading, one in table3.orders(cells).items()
    )
    return (
        "of the pairs with and without skips, of methods, and of densities, these stand as "
        f"printed: {'; '.join(told)}"
    )


# --- comparisons -------------------------------------------------------------------------------


def _trained(recipe: Recipe, out: Path) -> Iterator[tuple[Run, list[Run]]]:
    """Every reference that is trained, and what was pruned of it and is trained too."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in recipe.runs:
        if standing(out / run.spec.name).state == "done":
            groups.setdefault((run.cell.model, run.cell.data, run.spec.seed), []).append(run)
    for group in groups.values():
        for reference in (run for run in group if run.cell.method == recipe.reference):
            yield reference, [run for run in group if run is not reference]


def _compared(
    reference: Run, pruned: Sequence[Run], out: Path
) -> Iterator[tuple[Run, table3.Cell | str]]:
    """Each run with its cell of Table 3, or why it has none; the reference is measured once."""
    heats: tuple[Measured, ...] | None = None
    for run in pruned:
        kept = _Kept.of(run, reference, out)
        cell = kept.read()
        if cell is None:
            try:
                if heats is None:
                    heats = table3.measured(_graph(reference, out))
                place = place_of(run.cell, run.cell.density or _density(run, out))
                cell = table3.cell(place, heats, _graph(run, out))
            except N2nfxError as error:
                yield run, first_line(error)
                continue
            kept.write(cell)
        yield run, cell


def _density(run: Run, out: Path) -> float:
    """The density that a run ended with."""
    result = runresult.read(out / run.spec.name)
    assert result is not None, run.spec.name  # only such runs are compared
    return result.nnz / result.size


@dataclass(frozen=True)
class _Kept:
    """A comparison on disk, and of which two networks it is."""

    file: Path
    networks: tuple[str, ...]

    @classmethod
    def of(cls, run: Run, reference: Run, out: Path) -> "_Kept":
        folders = [out / one.spec.name for one in (run, reference)]
        texts = ((folder / _MANIFEST).read_bytes() for folder in folders)
        return cls(folders[0] / _KEPT, tuple(hashlib.sha256(text).hexdigest() for text in texts))

    @property
    def head(self) -> dict[str, object]:
        """What must be the same for the comparison to be this one."""
        return {"schema": SCHEMA, "tau": list(TAU), "networks": list(self.networks)}

    def read(self) -> table3.Cell | None:
        """The comparison; None where there is none, or it is damaged or of other networks."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            said = json.loads(self.file.read_bytes())
            if {key: said[key] for key in self.head} == self.head:
                return table3.Cell.from_data(said["cell"])
        return None

    def write(self, cell: table3.Cell) -> None:
        """Keep it, where that is possible: it can be measured again."""
        text = json.dumps({**self.head, "cell": cell.as_data()})
        with suppress(CannotOperate):
            put_file(self.file, text.encode())


def _graph(run: Run, out: Path) -> ChannelGraph:
    """The channel graph of what a run became."""
    _log.info("the graph of %s", run.spec.name)
    # A file of one's own was run by the recipe that names it, and may be run again.
    model = run.spec.model if ownfile.is_file(run.spec.model) else None
    return _SETTING.graph(load(out / run.spec.name / _NETWORK, model))


# --- figures -----------------------------------------------------------------------------------


def adjacency(recipe: Recipe, out: Path) -> Figure:
    """The adjacency matrices of the first seed's trained networks, as Fig. 3."""
    return plots.adjacency(_graphs(recipe, out))


def alpha(recipe: Recipe, out: Path) -> Figure:
    """alpha(K, t) of the first seed's trained networks, as Fig. 4."""
    return plots.scree(paper.alphas(_graphs(recipe, out)))


def _graphs(recipe: Recipe, out: Path) -> dict[str, ChannelGraph]:
    """The graphs of the first seed of which a network is trained, by label."""
    done = [run for run in recipe.runs if standing(out / run.spec.name).state == "done"]
    if not done:
        raise CannotOperate(f"{out}: no run of {recipe.name} has anything to draw yet")
    shown = [run for run in done if run.spec.seed == done[0].spec.seed]
    several = len({(run.cell.model, run.cell.data) for run in shown}) > 1
    return {_label(run.cell, several): _graph(run, out) for run in shown}


def _label(cell: Cell, several: bool) -> str:
    density = "" if cell.density is None else f", {percent(cell.density)}"
    return f"{cell.model} on {cell.data}: " * several + f"{cell.method}{density}"
