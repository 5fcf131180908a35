"""What comes of a recipe: the report and the figure of the kinds that it names."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from n2nfx.connectivity.plots import require_picture, save
from n2nfx.errors import UsageError
from n2nfx.recipe import Recipe
from n2nfx.training.report import Report

# Where each is made; what reads networks imports torch, and accuracies need none of it.
_TABLES = {
    "accuracy": "n2nfx.training.report:report",
    "connectivity": "n2nfx.training.connectivity:report",
}
_FIGURES = {
    "curves": "n2nfx.training.figures:curves",
    "errors": "n2nfx.training.figures:errors",
    "adjacency": "n2nfx.training.connectivity:adjacency",
    "alpha": "n2nfx.training.connectivity:alpha",
}


def report(recipe: Recipe, out: Path) -> Report:
    """The numbers of the runs in a folder, as far as there are any."""
    return _function(_TABLES[recipe.table])(recipe, out)


def draw(recipe: Recipe, out: Path, file: Path) -> None:
    """Write the recipe's figure of the runs in a folder: png, svg or pdf, as the file's name ends.

    Raises UsageError where the recipe has none, CannotOperate where there is nothing to draw yet.
    """
    require_figure(recipe, file)
    figure = _function(_FIGURES[recipe.figure])(recipe, out)
    figure.suptitle(recipe.title, fontsize=10, parse_math=False)
    save(figure, file)


def require_figure(recipe: Recipe, file: Path) -> None:
    """Raise UsageError where the recipe has no figure, or the file's name ends in no format."""
    require_picture(file)
    if recipe.figure == "none":
        known = " or ".join(f"figure={name}" for name in _FIGURES)
        raise UsageError(f"{recipe.name} has no figure; {known} gives it one")


def _function(place: str) -> Callable[[Recipe, Path], Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
