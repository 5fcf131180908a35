"""What the paper prints for a cell of a recipe: accuracies and distances, each from its file."""

import tomllib
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from n2nfx.paper.printed import NETWORKS, Place, table3
from n2nfx.recipe import Cell

_FILE = "_paper.toml"
_DISTANCES = {"table3": table3}
_NAMES = {ours: name for name, ours in NETWORKS.items()}
_CIFAR = ("cifar10", "cifar100")  # which of them Table 3 is of, the paper does not say


class Spread(NamedTuple):
    """Mean and sample deviation over `n` runs; the deviation of one run is not known."""

    mean: float
    std: float | None
    n: int


def known(table: str) -> Collection[str]:
    """The names of what is printed for a recipe's kind of table."""
    return (_DISTANCES if table == "connectivity" else _read()).keys()


def printed(table: str, cell: Cell) -> Spread | None:
    """Test accuracy in percent; None where the paper has nothing for such a cell.

    The mean is over 3 runs; the deviation is that of the camera-ready version's 5.
    """
    own = _read().get(table, {})
    row = own.get(cell.model, {}).get(cell.data, {}).get(cell.method)
    dense = row is not None and len(row) == 1
    densities: list[float | None] = [None] if dense else own.get("densities", [])
    if row is None or cell.density not in densities:
        return None
    place = densities.index(cell.density)
    mean, std = row[place]
    return Spread(mean, std, 3)


def place_of(cell: Cell, density: float) -> Place:
    """Where a cell would stand in Table 3, by the paper's names where it has one."""
    return Place(_NAMES.get(cell.model, cell.model), cell.method.lower(), density)


def distance(table: str, cell: Cell) -> float | None:
    """F of a cell; None where the paper has nothing for such a cell."""
    if table not in _DISTANCES or cell.data not in _CIFAR or cell.density is None:
        return None
    return _DISTANCES[table]().get(place_of(cell, cell.density))


@cache
def _read() -> Mapping[str, Any]:
    text = files("n2nfx.recipes").joinpath(_FILE).read_text(encoding="utf-8")
    return tomllib.loads(text)
