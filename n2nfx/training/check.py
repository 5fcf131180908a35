"""Whether there is what a recipe names: its models, its data, and the passes of its methods."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from n2nfx import catalogue, models, ownfile
from n2nfx.errors import CannotOperate, UsageError, did_you_mean
from n2nfx.recipe import Recipe, with_density
from n2nfx.registry import passes
from n2nfx.runspec import Training
from n2nfx.spec import from_text
from n2nfx.training.printed import known as known_tables
from n2nfx.training.sampler import sampler_of


def faults(recipe: Recipe) -> list[str]:
    """Everything that a recipe names and that there is not, a line each."""
    return [f"{key}: {told}" for key, told in _faults(recipe)]


def require_data(recipe: Recipe, root: Path | None) -> None:
    """Raise `CannotOperate` where data is not on this machine, with what brings it."""
    for name in recipe.matrix.data:
        if not ownfile.is_file(name):
            catalogue.require(catalogue.entry(name), catalogue.data_root(root))


def _faults(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for place, name in enumerate(recipe.matrix.models):
        yield from _told(f"matrix.models.{place}", lambda name=name: models.require_known(name))
    for place, name in enumerate(recipe.matrix.data):
        absent = list(_told(f"matrix.data.{place}", lambda name=name: _require_data(name)))
        enough = partial(_require_images, recipe.training, name)
        yield from absent or _told("training", enough)
    known = passes()
    for method, texts in recipe.methods.items():
        for place, text in enumerate(texts):
            whole = with_density(text, 0.5)
            yield from _told(
                f"methods.{method}.{place}", lambda whole=whole: from_text(whole, known)
            )
    printed = known_tables(recipe.table)
    if recipe.paper and recipe.paper not in printed:
        near = did_you_mean(recipe.paper, printed) or f"; there is {', '.join(printed)}"
        yield (
            "paper",
            f"there are no printed values {recipe.paper!r} of {recipe.table}{near}",
        )


def _told(key: str, look: Callable[[], object]) -> Iterator[tuple[str, str]]:
    """What a look at something says is wrong."""
    try:
        look()
    except (UsageError, CannotOperate) as error:
        yield key, str(error)


def _require_data(name: str) -> None:
    if ownfile.is_file(name):
        ownfile.require_function(ownfile.canonical(name, "load"))
    else:
        catalogue.entry(name)


def _require_images(training: Training, name: str) -> None:
    """Raise UsageError where a training asks for batches that a data set cannot give.

    How many images a function in a file gives, only calling it could tell.
    """
    if not ownfile.is_file(name):
        sampler_of(training, catalogue.entry(name).images[0], 0, 1)
