"""A training's progress for people: bars on a terminal, plain lines anywhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from n2nfx.training.loop import Progress

Watch = Callable[[Progress], None]


@contextmanager
def shown(name: str, console: Console | None = None) -> Iterator[Watch]:
    """What shows the progress of the run of that name, on stderr, while the body runs."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _plain(name)
        return
    with Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        console=console,
    ) as bars:
        task = bars.add_task(name, told="")
        yield lambda at: bars.update(task, total=at.steps, completed=at.step, told=told(at))


def _plain(name: str) -> Watch:
    """One line for every epoch, without any control codes."""
    shown = -1

    def line(at: Progress) -> None:
        nonlocal shown
        if at.epoch != shown and at.last is not None:
            shown = at.epoch
            print(f"{name}: {told(at)}", file=sys.stderr, flush=True)

    return line


def told(at: Progress) -> str:
    """How far it is, in a few words."""
    words = [f"epoch {at.epoch}/{at.epochs}"]
    if at.last is not None:
        words += [f"loss {at.last.loss:.3f}", f"accuracy {at.last.accuracy:.2f}%"]
    left = timedelta(seconds=round(at.seconds_left))
    return ", ".join([*words, f"{at.images_per_second:,.0f} images/s", f"{left} left"])
