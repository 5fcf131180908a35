"""What the paper prints for a cell of a recipe, read from a file beside the recipes."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from n2nfx.recipe import Cell

_FILE = "_paper.toml"


class Spread(NamedTuple):
    """Mean and sample deviation over `n` runs; the deviation of one run is not known."""

    mean: float
    std: float | None
    n: int


def tables() -> Mapping[str, Any]:
    """Every table that is there, by name."""
    return _read()


def printed(table: str, cell: Cell) -> Spread | None:
    """Test accuracy in percent; None where the paper has nothing for such a cell.

    The mean is over 3 runs; the deviation is that of the camera-ready version's 5.
    """
    own = _read().get(table, {})
    row = own.get(cell.model, {}).get(cell.data, {}).get(cell.method)
    if row is None or (cell.density is not None and cell.density not in own["densities"]):
        return None
    place = 0 if cell.density is None else own["densities"].index(cell.density)
    mean, std = row[place]
    return Spread(mean, std, 3)


@cache
def _read() -> Mapping[str, Any]:
    text = files("n2nfx.recipes").joinpath(_FILE).read_text(encoding="utf-8")
    return tomllib.loads(text)
