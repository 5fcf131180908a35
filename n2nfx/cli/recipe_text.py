"""Plans, sweeps and reports of recipes on a terminal, and in plain lines where there is none."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from n2nfx.cli.tables import console, say, table
from n2nfx.cli.text import printable
from n2nfx.training.plan import Plan
from n2nfx.training.report import Report, Row, lines, percent, tables
from n2nfx.training.status import Standing
from n2nfx.training.sweep import Ended, Job

_LINE_EVERY = 60.0  # seconds, for each run, where there is no terminal

# --- plans -------------------------------------------------------------------------------------


def planned(plan: Plan) -> dict[str, Any]:
    """A plan as JSON data; hours are those of `at_once` runs at once."""
    runs = [
        {
            "name": run.spec.name,
            "state": stands.state,
            "method": run.cell.method,
            "density": run.cell.density,
            "epochs": run.spec.training.epochs,
            **run.spec.model_dump(mode="json", include={"model", "data", "passes", "seed"}),
        }
        for run, stands in plan.runs
    ]
    return {
        "id": plan.recipe.id,
        "cells": len(plan.recipe.cells),
        "left": len(plan.left),
        "failed": plan.failed,
        "epochs": plan.epochs,
        "at_once": plan.at_once,
        "hours": plan.hours,
        "bytes": plan.bytes,
        "free_bytes": plan.free,
        "absent": dict(plan.absent),
        "runs": runs,
    }


def show_plan(plan: Plan, devices: Sequence[str]) -> None:
    """Runs by model and data, and the totals."""
    out = console()
    made = table("model", "data", "runs", "left", "epochs left", "minutes each", "MB each")
    groups: dict[tuple[str, str], list[tuple[Any, Standing]]] = {}
    for run, stands in plan.runs:
        groups.setdefault((run.cell.model, run.cell.data), []).append((run, stands))
    for key, runs in groups.items():
        left = sum(stands.is_left for _, stands in runs)
        speed = plan.speeds.get(key)
        sizes = sorted(plan.kept(run) / 1e6 for run, _ in runs) if speed else []
        measured = (f"{speed.seconds / 60:.1f}", _span(sizes)) if speed else ("", "")
        epochs = left * plan.recipe.training.epochs
        made.add_row(*key, f"{len(runs):,}", f"{left:,}", f"{epochs:,}", *measured)
    out.print(made)
    say(out, "")
    say(out, f"{plan.recipe.id}: {len(plan.left)} of {len(plan.runs)} runs to do, "
        f"{plan.epochs:,} epochs")  # fmt: skip
    if plan.failed:
        say(out, f"{plan.failed} failed: run --retry runs them again")
    hours, size = plan.hours, plan.bytes
    if hours is not None:
        say(out, f"about {_duration(hours)} on {', '.join(devices)}, {plan.at_once} at once")
    if size is not None:
        say(out, f"{size / 1e9:.2f} GB of disk; {plan.free / 1e9:.1f} GB are free")
    for name, why in plan.absent.items():
        say(out, printable(why if why.startswith(name) else f"{name}: {why}"))


def _span(sizes: Sequence[float]) -> str:
    """The least and the most of them, in order, or one number where they look the same."""
    return " to ".join(dict.fromkeys(f"{size:.1f}" for size in (sizes[0], sizes[-1])))


def _duration(hours: float) -> str:
    if hours < 1 / 30:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:,.0f} hours"


# --- sweeps ------------------------------------------------------------------------------------


class Narrator:
    """Shows how jobs fare, and keeps why any failed: not all of it can be written to its folder."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}

    def started(self, job: Job) -> None: ...

    def progress(self, job: Job, progress: Any) -> None: ...

    def ended(self, ended: Ended) -> None:
        if ended.state == "failed":
            self.failed[ended.name] = ended.told


@contextmanager
def narrated_sweep(jobs: Sequence[Job]) -> Iterator[Narrator]:
    """Show how jobs fare, on stderr: bars on a terminal, else lines."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield _Lines(len(jobs))
        return
    # How far a run is stands under its name, which alone fills most of a narrow terminal.
    columns = (
        TextColumn("{task.description}{task.fields[told]}", markup=False),
        BarColumn(bar_width=10),
    )
    with Progress(*columns, console=screen) as bars:
        yield _Bars(bars, len(jobs))


class _Lines(Narrator):
    """A line for each run that begins or ends, and now and then for how far it is."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count, self._over = count, 0
        self._heard: dict[str, float] = {}

    def started(self, job: Job) -> None:
        self._heard[job.spec.name] = time.monotonic()
        self._say(f"{job.spec.name}: begins on {job.device}")

    def progress(self, job: Job, progress: Any) -> None:
        if time.monotonic() - self._heard[job.spec.name] >= _LINE_EVERY:
            self._heard[job.spec.name] = time.monotonic()
            self._say(f"{job.spec.name}: {_how_far(progress)}")

    def ended(self, ended: Ended) -> None:
        super().ended(ended)
        self._over += 1
        self._say(f"[{self._over}/{self._count}] {_how_it_ended(ended)}")

    def _say(self, line: str) -> None:
        say(Console(stderr=True, width=1000), printable(line))


class _Bars(Narrator):
    """A bar for all, and one for each run that is at work."""

    def __init__(self, bars: Progress, count: int) -> None:
        super().__init__()
        self._bars = bars
        self._all = bars.add_task("all runs", total=count, told="")
        self._tasks: dict[str, Any] = {}

    def started(self, job: Job) -> None:
        self._drop(job.spec.name)
        epochs = job.spec.training.epochs
        self._tasks[job.spec.name] = self._bars.add_task(job.spec.name, total=epochs, told="")

    def progress(self, job: Job, progress: Any) -> None:
        done = progress.epochs * progress.step / max(1, progress.steps)
        told = f"\n  {_how_far(progress)}"
        self._bars.update(self._tasks[job.spec.name], completed=done, told=told)

    def ended(self, ended: Ended) -> None:
        super().ended(ended)
        self._drop(ended.name)
        self._bars.advance(self._all)
        self._bars.console.print(printable(_how_it_ended(ended)), markup=False, soft_wrap=True)

    def _drop(self, name: str) -> None:
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))


def _how_far(progress: Any) -> str:
    told = f"epoch {progress.epoch}/{progress.epochs}, {progress.images_per_second:,.0f} images/s"
    if progress.last is not None:
        told += f", {progress.last.accuracy:.2f}%"
    return f"{told}, {_duration(progress.seconds_left / 3600)} left"


def _how_it_ended(ended: Ended) -> str:
    return f"{ended.name}: {ended.state}{f': {ended.told}' if ended.told else ''}"


# --- status and reports ------------------------------------------------------------------------


def show_status(stands: Mapping[str, Standing], epochs: Mapping[str, int], of_epochs: int) -> None:
    """Every run that is begun, how far it is, and how many there are of each kind."""
    out = console()
    made = table("run", "state", "epoch", "accuracy", "told")
    for name, one in stands.items():
        if one.state != "missing":
            accuracy = one.result.final_accuracy if one.result else None
            shown = "" if accuracy is None else f"{accuracy:.2f}"
            told = printable(one.told)
            made.add_row(name, one.state, f"{epochs[name]}/{of_epochs}", shown, told)
    if made.row_count:
        out.print(made)
        say(out, "")
    counts = Counter(one.state for one in stands.values())
    say(out, ", ".join(f"{count} {state}" for state, count in counts.items()))


def show_report(found: Report) -> None:
    """A table for each model and data set, and what must be said beside."""
    screen = console()
    say(screen, found.recipe.title or found.recipe.name)
    for one in tables(found.rows):
        say(screen, "")
        made = table(one.title, *map(percent, one.densities), left=1)
        for method, cells in one.each():
            made.add_row(printable(method), *(_stacked(row) for row in cells))
            made.add_section()
        screen.print(made)
    if found.notes:
        say(screen, "")
    for note in found.notes:
        say(screen, printable(note))


def _stacked(row: Row | None) -> Text:
    """A cell of the table, what is beside the number dimmed."""
    if row is None:
        return Text()
    first, *others = lines(row)
    return Text.assemble(first, *((f"\n{line}", "dim") for line in others))
