"""A recipe's figure: accuracy by epoch (as Fig. 5), or test error by density (as Fig. 6)."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from n2nfx.errors import CannotOperate
from n2nfx.recipe import Cell, Recipe
from n2nfx.training.report import Row, Table, percent, rows, tables
from n2nfx.training.status import EVENTS


def curves(recipe: Recipe, out: Path) -> Figure:
    """Accuracy by epoch of the runs in a folder, as Fig. 5.

    Raises CannotOperate where there is nothing to draw yet.
    """
    return _drawn(recipe, out, lambda axis, table: _curves(axis, recipe, table, out))


def errors(recipe: Recipe, out: Path) -> Figure:
    """Test error by density of the runs in a folder, as Fig. 6.

    Raises CannotOperate where there is nothing to draw yet.
    """
    return _drawn(recipe, out, _errors)


def _drawn(recipe: Recipe, out: Path, draw: Callable[[Any, Table], int]) -> Figure:
    """A panel for each table, and in it so many lines as `draw` says that it drew."""
    found = tables(rows(recipe, out))
    figure = Figure(figsize=(1 + 4 * len(found), 3.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    drawn = 0
    for axis, table in zip(axes, found, strict=True):
        axis.set_title(table.title, fontsize=9)
        drawn += draw(axis, table)
    if not drawn:
        raise CannotOperate(f"{out}: no run of {recipe.name} has anything to draw yet")
    axes[0].legend(fontsize=8)
    return figure


def _curves(axis: Any, recipe: Recipe, table: Table, out: Path) -> int:
    """Mean accuracy by epoch of every cell, and between which its runs are."""
    drawn = 0
    for cell in _cells(table):
        runs = [run.spec.name for run in recipe.runs if run.cell == cell]
        curves = [curve for name in runs if (curve := _accuracies(out / name))]
        if not curves:
            continue
        columns = list(zip(*curves, strict=False))  # as far as all runs are
        epochs = range(1, len(columns) + 1)
        means = [sum(column) / len(column) for column in columns]
        name = (
            cell.method if len(table.densities) <= 2 else f"{cell.method}, {percent(cell.density)}"
        )
        (line,) = axis.plot(epochs, means, label=name, linewidth=1)
        low, high = ([pick(column) for column in columns] for pick in (min, max))
        axis.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        drawn += 1
    axis.set_xlabel("epoch")
    axis.set_ylabel("test accuracy, %")
    return drawn


def _errors(axis: Any, table: Table) -> int:
    """Mean test error of every method by density, which falls to the right."""
    drawn = 0
    for method, found in table.each():
        known = [row for row in found if row is not None and row.final is not None]
        points = [(row.cell.density, row) for row in known]
        dense = [row for density, row in points if density is None]
        pruned = [(density, row) for density, row in points if density is not None]
        for row in dense:
            axis.axhline(_error(row), label=method, color="black", linewidth=0.8, linestyle=":")
        if pruned:
            axis.errorbar(
                [100 * density for density, _ in pruned],
                [_error(row) for _, row in pruned],
                yerr=[(row.final.std or 0.0) if row.final else 0.0 for _, row in pruned],
                label=method, marker="o", markersize=3, linewidth=1, capsize=2,
            )  # fmt: skip
        drawn += len(known)
    densities = [100 * density for density in table.densities if density is not None]
    if densities:
        axis.set_xscale("log")
        axis.set_xticks(densities, [f"{density:g}%" for density in densities])
        axis.minorticks_off()
        axis.invert_xaxis()
    axis.set_xlabel("density")
    axis.set_ylabel("test error, %")
    return drawn


def _error(row: Row) -> float:
    assert row.final is not None
    return 100 - row.final.mean


def _cells(table: Table) -> Iterator[Cell]:
    for _, found in table.each():
        yield from (row.cell for row in found if row is not None)


def _accuracies(folder: Path) -> Sequence[float]:
    """A run's accuracy by epoch, as far as it is; a last line that is half written is none."""
    try:
        text = (folder / EVENTS).read_text()
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line)["accuracy"])
        except (ValueError, KeyError, TypeError):
            break
    return found
