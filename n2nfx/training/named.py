"""Whether there are the data sets that a recipe names, told without torch."""

from collections.abc import Iterator

from n2nfx import catalogue, ownfile
from n2nfx.errors import UsageError
from n2nfx.recipe import Recipe


def unknown_data(recipe: Recipe) -> Iterator[str]:
    """The data sets that there are not, a line each; files of one's own are others' matter."""
    for place, name in enumerate(recipe.matrix.data):
        if ownfile.is_file(name):
            continue
        try:
            catalogue.entry(name)
        except UsageError as error:
            yield f"matrix.data.{place}: {error}"
