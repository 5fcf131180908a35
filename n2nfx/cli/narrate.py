"""Narration on stderr: what the library's own log says, a line each, while a command works."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from n2nfx.cli.text import printable


class _Lines(logging.Handler):
    """Prints each message as one line, never wrapped, so that logs and pipes can read it."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(
            printable(record.getMessage()),
            style="dim",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def narrated() -> Iterator[None]:
    """Show what n2nfx logs while the body runs."""
    log, handler = logging.getLogger("n2nfx"), _Lines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
