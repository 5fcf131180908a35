"""A recipe's numbers, cell by cell: mean and deviation over seeds, beside what the paper prints."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from n2nfx.recipe import Cell, Recipe
from n2nfx.training.printed import Spread, printed
from n2nfx.training.runresult import RESULT
from n2nfx.training.status import Standing, standing
from n2nfx.training.unlike import unlike

SCHEMA = "n2nfx.recipe-report/1"

_UNFINISHED = ("running", "stopped", "failed", "diverged", "missing")
_TOLD = ("failed", "diverged")


@dataclass(frozen=True)
class Connectivity:
    """How far the heat of a cell's networks is from that of their references, over its runs.

    `distances` are F by reading (`n2nfx.paper.table3`), none of them wrong by more than
    `certificate`; `measures` are what else the comparison says, by name. `printed` is the paper's
    F. There are no distances where no reference of these runs is trained yet.
    """

    distances: Mapping[str, Spread]
    measures: Mapping[str, Spread]
    certificate: float
    printed: float | None

    @property
    def compared(self) -> int:
        """How many runs the distances are of: those whose reference is trained too."""
        return next((spread.n for spread in self.distances.values()), 0)


@dataclass(frozen=True)
class Row:
    """A cell's numbers. Accuracies are in percent, of the test images, over the runs that are done.

    `states` counts all its runs by where they stand, and `told` are the reasons of those that
    failed or diverged. `nnz` are the numbers of weights that runs have: one, if all is well. A
    table of accuracies has no `connectivity`, and the reference has none with itself.
    """

    cell: Cell
    states: Mapping[str, int]
    final: Spread | None
    best: Spread | None
    loss: Spread | None
    nnz: tuple[int, ...]
    paper: Spread | None
    told: tuple[str, ...] = ()
    connectivity: Connectivity | None = None

    @property
    def difference(self) -> float | None:
        """The mean final accuracy, less what the paper prints."""
        if self.final is None or self.paper is None:
            return None
        return self.final.mean - self.paper.mean

    @property
    def is_open(self) -> bool:
        """Whether more may come without anybody asking for it."""
        return any(self.states.get(state) for state in ("running", "stopped", "missing"))

    @property
    def unfinished(self) -> str:
        """How many runs have no number, and why: "1 running, 2 missing"."""
        counts = ((state, self.states.get(state, 0)) for state in _UNFINISHED)
        return ", ".join(f"{count} {state}" for state, count in counts if count)


@dataclass(frozen=True)
class Report:
    """A recipe's numbers: a row for each cell, in its order, and what must be said beside them."""

    recipe: Recipe
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def report(recipe: Recipe, out: Path) -> Report:
    """The accuracies of the runs in a folder."""
    found = rows(recipe, out)
    over = [out / run.spec.name for run in recipe.distinct]
    told = (*notes(found), *unlike(folder for folder in over if (folder / RESULT).exists()))
    return Report(recipe, tuple(found), told)


def rows(recipe: Recipe, out: Path) -> list[Row]:
    """A row for each cell of the recipe, of the runs in a folder."""
    found: dict[Cell, list[Standing]] = {cell: [] for cell in recipe.cells}
    for run in recipe.runs:
        found[run.cell].append(standing(out / run.spec.name))
    return [_row(cell, stands, recipe.paper) for cell, stands in found.items()]


def _row(cell: Cell, stands: Sequence[Standing], paper: str) -> Row:
    over = [one.result for one in stands if one.result is not None]
    done = [result for result in over if result.status == "done"]
    return Row(
        cell=cell,
        states=Counter(one.state for one in stands),
        final=spread_of(result.final_accuracy for result in done),
        best=spread_of(result.best_accuracy for result in done),
        loss=spread_of(result.final_loss for result in done),
        nnz=tuple(sorted({result.nnz for result in over})),
        paper=printed(paper, cell),
        told=tuple(one.told for one in stands if one.state in _TOLD and one.told),
    )


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of numbers; None where there are none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return Spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))


# --- one cell, in lines ------------------------------------------------------------------------


def shown(spread: Spread) -> str:
    """92.08 ± 0.36"""
    deviation = "" if spread.std is None else f" ± {spread.std:.2f}"
    return f"{spread.mean:.2f}{deviation}"


def _small(spread: Spread) -> str:
    """3.2e-02 ± 1.1e-03; what is exactly 0 as such."""
    mean = f"{spread.mean:.1e}" if spread.mean else "0"
    return mean + (f" ± {spread.std:.1e}" if spread.std else "")


def lines(row: Row) -> list[str]:
    """What stands in a table, F first if it is one of connectivity.

    Then the final accuracy, the paper's under it, the best, and n.
    """
    told = [] if row.connectivity is None else _connectivity_lines(row.connectivity)
    compared = 0 if row.connectivity is None else row.connectivity.compared
    if row.final is not None and 0 < compared < row.final.n:
        told.append(f"F of {compared} of {row.final.n} runs")
    if row.final is not None:
        told.append(f"{'accuracy: ' if told else ''}{shown(row.final)}")
    if row.paper is not None:
        difference = "" if row.difference is None else f" ({row.difference:+.2f})"
        told.append(f"paper {shown(row.paper)}{difference}")
    if row.final is not None and row.best is not None:
        told.append(f"best {shown(row.best)}, n {row.final.n}")
    if row.unfinished:
        told.append(row.unfinished)
    return told


def _connectivity_lines(found: Connectivity) -> list[str]:
    if not found.distances:
        return ["no trained reference yet"]
    told = [f"{brief(reading)}: {_small(value)}" for reading, value in found.distances.items()]
    if found.printed is not None:
        told.append(f"paper: {found.printed:.1e}")
    told.append(f"components: {found.measures['components'].mean:,g}")
    return told


def brief(reading: str) -> str:
    """The name of a reading where there is little room: ref 5."""
    convention, _, tau = reading.partition(" ")
    return f"{convention[:3]} {tau}".rstrip()


def percent(density: float | None) -> str:
    """A column's head: 2%; dense where there is no density."""
    return "dense" if density is None else f"{100 * density:g}%"


@dataclass(frozen=True)
class Table:
    """The cells of one model on one data set: methods down, densities across."""

    model: str
    data: str
    densities: tuple[float | None, ...]
    methods: Mapping[str, Mapping[float | None, Row]]

    @property
    def title(self) -> str:
        """Which it is."""
        return f"{self.model} on {self.data}"

    def each(self) -> Iterator[tuple[str, list[Row | None]]]:
        """Every method, with its row of each density."""
        for method, cells in self.methods.items():
            yield method, [cells.get(density) for density in self.densities]


def tables(found: Sequence[Row]) -> list[Table]:
    """The rows as tables, in their order."""
    made = []
    for (model, data), group in groupby(found, lambda row: (row.cell.model, row.cell.data)):
        methods: dict[str, dict[float | None, Row]] = {}
        for row in group:
            methods.setdefault(row.cell.method, {})[row.cell.density] = row
        densities = dict.fromkeys(density for cells in methods.values() for density in cells)
        ordered = sorted(densities, key=lambda density: density is not None)  # dense comes first
        made.append(Table(model, data, tuple(ordered), methods))
    return made


def notes(found: Sequence[Row]) -> list[str]:
    """What must be said beside accuracies."""
    told = []
    if any(row.paper for row in found):
        told.append(
            "paper: means of 3 runs; deviations are those of the camera-ready version's 5; "
            "the difference is that of final accuracies"
        )
    for row in found:
        if len(row.nnz) > 1:
            counts = ", ".join(f"{count:,}" for count in row.nnz)
            told.append(
                f"{row.cell.method} at {percent(row.cell.density)}: runs of {counts} weights"
            )
        told += [f"{row.cell.method} at {percent(row.cell.density)}: {why}" for why in row.told]
    budgets: dict[tuple[str, str, float | None], set[int]] = {}
    for row in found:
        key = (row.cell.model, row.cell.data, row.cell.density)
        budgets.setdefault(key, set()).update(row.nnz)
    for (model, data, density), counts in budgets.items():
        if density is not None and len(counts) > 1:
            told.append(f"{model} on {data} at {percent(density)}: numbers of weights differ")
    return list(dict.fromkeys(told))


# --- files -------------------------------------------------------------------------------------


def as_markdown(found: Report) -> str:
    """Tables in Markdown."""
    parts = [f"# {found.recipe.title or found.recipe.name}"]
    for table in tables(found.rows):
        head = ["", *map(percent, table.densities)]
        body = [
            [_cell(method), *("<br>".join(lines(row)) if row else "" for row in cells)]
            for method, cells in table.each()
        ]
        rule = ["---"] * len(head)
        parts.append(f"## {table.title}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body)))
    parts += [f"* {note}" for note in found.notes]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """A text in a table of Markdown, where a bar would end its cell."""
    return text.replace("|", "\\|")


def as_csv(found: Report) -> str:
    """A line for each cell."""
    file = io.StringIO()
    data = [_flat(row) for row in found.rows]
    columns = dict.fromkeys(key for row in data for key in row)  # a reference has fewer
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(data)
    return file.getvalue()


def as_json(found: Report) -> str:
    """All of it as JSON."""
    cells = [{**_flat(row), "reasons": list(row.told)} for row in found.rows]
    told = {"schema": SCHEMA, "recipe": found.recipe.id, "title": found.recipe.title}
    return json.dumps({**told, "notes": found.notes, "cells": cells}, indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Report], str]] = {
    "markdown": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def _flat(row: Row) -> dict[str, Any]:
    """A row as plain values; accuracies in percent."""
    cell = row.cell
    return {
        "model": cell.model,
        "data": cell.data,
        "method": cell.method,
        "density": cell.density,
        "n": row.final.n if row.final else 0,
        **_named("final_accuracy", row.final),
        **_named("best_accuracy", row.best),
        **_named("final_loss", row.loss),
        **_named("paper", row.paper),
        "difference": row.difference,
        "nnz": row.nnz[0] if len(row.nnz) == 1 else None,
        **{state: row.states.get(state, 0) for state in ("done", *_UNFINISHED)},
        **({} if row.connectivity is None else _flat_connectivity(row.connectivity)),
    }


def _flat_connectivity(found: Connectivity) -> dict[str, float | None]:
    told: dict[str, float | None] = {
        "paper_F": found.printed,
        "F_certificate": found.certificate,
        "F_n": found.compared,
    }
    for reading, value in found.distances.items():
        told |= _named(f"F_{reading.replace(' ', '_')}", value)
    for name, value in found.measures.items():
        told |= _named(name, value)
    return told


def _named(name: str, spread: Spread | None) -> dict[str, float | None]:
    mean, std = (None, None) if spread is None else spread[:2]
    return {name: mean, f"{name}_std": std}
