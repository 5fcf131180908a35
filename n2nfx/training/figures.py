"""A recipe's figure: accuracy by epoch (as Fig. 5), or test error by density (as Fig. 6)."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from n2nfx.errors import CannotOperate
from n2nfx.recipe import Cell, Recipe
from n2nfx.training.report import Row, Table, percent, rows, tables
from n2nfx.training.status import EVENTS, standing


def curves(recipe: Recipe, out: Path) -> Figure:
    """Accuracy by epoch of the runs in a folder, as Fig. 5.

    Raises CannotOperate where there is nothing to draw yet.
    """
    several = len(recipe.matrix.densities) > 1
    colours = _colours(_label(cell, several) for cell in recipe.cells)
    folders: dict[Cell, list[Path]] = {}
    for run in recipe.runs:
        folders.setdefault(run.cell, []).append(out / run.spec.name)

    def draw(axis: Any, table: Table) -> None:
        axis.set_xlabel("epoch")
        axis.set_ylabel("test accuracy, %")
        for cell in _cells(table):
            name = _label(cell, several)
            runs = [_accuracies(folder) for folder in _drawable(folders[cell])]
            _curve(axis, name, colours[name], runs)

    return _drawn(recipe, out, draw)


def errors(recipe: Recipe, out: Path) -> Figure:
    """Test error by density of the runs in a folder, as Fig. 6.

    Raises CannotOperate where there is nothing to draw yet.
    """
    colours = _colours(cell.method for cell in recipe.cells if cell.density is not None)
    return _drawn(recipe, out, lambda axis, table: _errors(axis, table, colours))


def _colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, the same in every panel and however much of the table is there."""
    return {name: f"C{place}" for place, name in enumerate(dict.fromkeys(names))}


def _label(cell: Cell, several: bool) -> str:
    """What a curve is called, where there are several densities."""
    return f"{cell.method}, {percent(cell.density)}" if several and cell.density else cell.method


def _drawn(recipe: Recipe, out: Path, draw: Callable[[Any, Table], None]) -> Figure:
    """A panel for each table, and one legend of all lines in them."""
    found = tables(rows(recipe, out))
    figure = Figure(figsize=(1 + 4 * len(found), 3.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, table in zip(axes, found, strict=True):
        axis.set_title(table.title, fontsize=9, parse_math=False)
        draw(axis, table)
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if not handles:
        raise CannotOperate(f"{out}: no run of {recipe.name} has anything to draw yet")
    legend = axes[0].legend(handles.values(), handles.keys(), fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _shown(name: str) -> str:
    """A name as the legend takes it, which leaves out what begins with a low line."""
    return f" {name}" if name.startswith("_") else name


def _drawable(folders: list[Path]) -> list[Path]:
    """The runs that are done, as in the report; where none is, all, as far as they are."""
    return [folder for folder in folders if standing(folder).state == "done"] or folders


def _curve(axis: Any, name: str, colour: str, runs: Sequence[Sequence[float]]) -> None:
    """Mean accuracy by epoch of a cell, and between which its runs are."""
    columns = list(zip(*filter(None, runs), strict=False))  # as far as all runs are
    if not columns:
        return
    epochs = range(1, len(columns) + 1)
    means = [sum(column) / len(column) for column in columns]
    marker = "o" if len(columns) == 1 else ""
    axis.plot(epochs, means, label=_shown(name), color=colour, linewidth=1, marker=marker)
    low, high = ([pick(column) for column in columns] for pick in (min, max))
    axis.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _errors(axis: Any, table: Table, colours: dict[str, str]) -> None:
    """Mean test error of every method by density, which falls to the right."""
    densities = sorted(density for density in table.densities if density is not None)
    for method, cells in table.methods.items():
        dense = cells.get(None)
        if dense is not None and dense.final is not None:
            style = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
            axis.axhline(_error(dense), label=_shown(method), **style)
        points = [(density, row) for density in densities if (row := cells.get(density))]
        points = [(density, row) for density, row in points if row.final is not None]
        if points:
            axis.errorbar(
                [100 * density for density, _ in points],
                [_error(row) for _, row in points],
                yerr=[(row.final.std or 0.0) if row.final else 0.0 for _, row in points],
                label=_shown(method), color=colours[method], marker="o", markersize=3,
                linewidth=1, capsize=2,
            )  # fmt: skip
    if densities:
        axis.set_xscale("log")
        ticks = [100 * density for density in densities]
        axis.set_xticks(ticks, [f"{density:g}%" for density in ticks])
        axis.minorticks_off()
        axis.invert_xaxis()
    axis.set_xlabel("density")
    axis.set_ylabel("test error, %")


def _error(row: Row) -> float:
    assert row.final is not None
    return 100 - row.final.mean


def _cells(table: Table) -> Iterator[Cell]:
    for _, found in table.each():
        yield from (row.cell for row in found if row is not None)


def _accuracies(folder: Path) -> Sequence[float]:
    """A run's accuracy by epoch, as far as it is; a last line that is half written is none."""
    try:
        text = (folder / EVENTS).read_bytes()
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(float(json.loads(line)["accuracy"]))
        except (ValueError, KeyError, TypeError):
            break
    return found
