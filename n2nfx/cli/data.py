"""`n2nfx data`: which data sets there are, to bring one here, and whether it is whole."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from n2nfx.cli import options
from n2nfx.cli.text import printable

if TYPE_CHECKING:
    from n2nfx.catalogue import Entry
    from n2nfx.training.fetch import Progress
    from n2nfx.training.folder import Folder
    from n2nfx.training.images import Images

SCHEMA_LS = "n2nfx.data-ls/1"
SCHEMA_VERIFY = "n2nfx.data-verify/1"


@click.group()
def data() -> None:
    """List the data sets, fetch one, and check one."""


@data.command("ls")
@options.data_root("--root")
@options.as_json
def ls(root: Path | None, as_json: bool) -> None:
    """List the data sets: what each is, whether it is here, and what brings it."""
    from n2nfx import catalogue

    where = catalogue.data_root(root)
    rows = [_row(one, where) for one in catalogue.ENTRIES.values()]
    if as_json:
        listed = {"schema": SCHEMA_LS, "root": str(where), "data": rows}
        click.echo(json.dumps(listed, indent=2))
        return
    _show_rows(rows)


def _row(one: "Entry", root: Path) -> dict[str, Any]:
    from n2nfx import catalogue

    found = catalogue.find(one, root)
    whole = found.state == "whole"
    return {
        "name": one.name,
        "state": found.state,
        "classes": one.class_count,
        "shape": list(one.shape),
        "training": one.images[0],
        "testing": one.images[1],
        "download_bytes": sum(archive.size for archive in one.archives),
        "where": str(found.folder) if whole else None,
        "absent": "" if whole else catalogue.absence(one, root),
        "remedy": "" if whole else catalogue.remedy(one, root),
    }


def _show_rows(rows: list[dict[str, Any]]) -> None:
    from n2nfx.cli.tables import console, say, table, times

    out = console()
    made = table("data", "here", "images", "classes", "training", "testing", "download")
    for row in rows:
        size = f"{row['download_bytes'] / 1e6:.0f} MB" if row["download_bytes"] else ""
        counts = (f"{row[key]:,}" for key in ("classes", "training", "testing"))
        made.add_row(row["name"], row["state"], times(row["shape"]), *counts, size)
    out.print(made)
    say(out, "")
    for row in rows:
        told = row["where"] or f"{row['absent']}; {row['remedy']}"
        say(out, printable(f"{row['name']}: {told}"))


@data.command("fetch")
@click.argument("name")
@click.option(
    "--from",
    "given",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Take it from this archive, file or folder instead of the network; may be repeated.",
)
@options.data_root("--root")
def fetch(name: str, given: tuple[Path, ...], root: Path | None) -> None:
    """Bring the data set NAME here, from the first mirror that has it whole, or from files at hand.

    What was begun goes on; sizes and SHA-256 are checked; nothing is ever half in place.
    """
    from n2nfx import catalogue
    from n2nfx.cli.narrate import narrated
    from n2nfx.training.fetch import fetch as bring

    one = catalogue.entry(name)
    with narrated(), _progress() as progress:
        folder = bring(one, catalogue.data_root(root), given, progress)
    click.echo(f"{one.name}: {printable(str(folder))}")


@contextmanager
def _progress() -> "Iterator[Progress]":
    """Bars on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, have: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=size)
            bars.update(tasks[name], completed=have)

        yield show


@dataclass(frozen=True)
class _Checked:
    """One file, or one part, of a data set: what it has, and what is wrong with it if anything."""

    name: str
    path: str
    has: str
    wrong: str


@data.command("verify")
@click.argument("name")
@options.data_root("--root")
@options.as_json
@click.pass_context
def verify(context: click.Context, name: str, root: Path | None, as_json: bool) -> None:
    """Check the data set NAME (or file.py:function) to the last byte; exit with 4 if it is damaged.

    Of an image folder only the first bytes of each file are looked at.
    """
    from n2nfx import catalogue, ownfile
    from n2nfx.errors import DamagedFile

    if ownfile.is_file(name):
        checked = _check_parts(name, None)
    else:
        one = catalogue.entry(name)
        where = catalogue.data_root(root)
        if not one.files or catalogue.find(one, where).state == "missing":
            catalogue.require(one, where)
        checked = _check_files(one, where) if one.files else _check_parts(name, where)
    wrong = [one for one in checked if one.wrong]
    if as_json:
        files = [asdict(one) for one in checked]
        found = {"schema": SCHEMA_VERIFY, "name": name, "whole": not wrong, "files": files}
        click.echo(json.dumps(found, indent=2))
    else:
        _show_checked(checked)
    for one in wrong:
        click.echo(printable(f"error: {one.path}: {one.wrong}"), err=True)
    if wrong:
        context.exit(DamagedFile.exit_code)


def _check_files(one: "Entry", root: Path) -> list[_Checked]:
    """Each file by its size and SHA-256."""
    from n2nfx import catalogue
    from n2nfx.training.fetch import damages

    place = catalogue.find(one, root)
    paths = {file.name: place.folder / file.name for file in one.files} | {**place.paths}
    return [
        _Checked(file.name, str(paths[file.name]), f"{file.size:,} bytes, SHA-256", wrong)
        for file, wrong in zip(one.files, damages(one, place), strict=True)
    ]


def _check_parts(name: str, root: Path | None) -> list[_Checked]:
    """Each part by reading it."""
    from n2nfx import catalogue
    from n2nfx.training.data import load

    found = load(name, root)
    known = catalogue.ENTRIES.get(name)
    expected = known.images if known else (len(found.train), len(found.test))
    classes = len(found.classes)
    return [
        _Checked(part, name, f"{len(images):,} images, {classes} classes", _wrong(images, count))
        for part, images, count in zip(
            ("training", "testing"), (found.train, found.test), expected, strict=True
        )
    ]


def _wrong(images: "Images | Folder", expected: int) -> str:
    """What is wrong with a part of a data set that was read."""
    from n2nfx.training.folder import Folder, damages

    if len(images) != expected:
        return f"has {len(images):,} images, and {expected:,} are expected"
    return next(damages(images), "") if isinstance(images, Folder) else ""


def _show_checked(checked: list[_Checked]) -> None:
    from n2nfx.cli.tables import console, table

    made = table("file", "state", "checked", "path", left=4)
    for one in checked:
        made.add_row(one.name, "damaged" if one.wrong else "right", one.has, printable(one.path))
    console().print(made)
