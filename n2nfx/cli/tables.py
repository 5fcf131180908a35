"""How tables and numbers look on a terminal, and where there is none."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from n2nfx.cli.text import printable

_WIDTH = 1000  # where stdout is no terminal: nothing is cut


def console() -> Console:
    """Where data is printed."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=_WIDTH)


def say(out: Console, line: str) -> None:
    """Print one line as it is, never wrapped; brackets in it are no markup."""
    out.print(line, soft_wrap=True, markup=False)


class _Plain(Table):
    """A table whose texts are shown as they are: brackets in them are no markup."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        plain = (Text(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*plain, **options)


def table(*columns: str, left: int = 2) -> Table:
    """A table whose first columns are words and whose others are numbers."""
    made = _Plain(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(
            Text(printable(column)), justify="left" if index < left else "right", no_wrap=True
        )
    return made


def times(shape: Sequence[int]) -> str:
    """A shape: 64x3x7x7."""
    return "x".join(map(str, shape))


def percent(part: int, whole: int) -> str:
    """A share; of nothing there is none."""
    return f"{part / whole:.4%}" if whole else ""
