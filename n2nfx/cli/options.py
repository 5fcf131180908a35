"""Options, and types of options, that several commands have."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class Numbers(click.ParamType):
    """Whole numbers separated by commas, as a tuple: 2,3 or 3,32,32."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not whole numbers separated by commas", param, ctx)


class NumberOr(click.ParamType):
    """A number, a whole one unless `kind` is float, or one word."""

    def __init__(self, word: str, kind: type[int] | type[float] = int) -> None:
        self.word = word
        self.kind = kind
        self.name = f"{'N' if kind is int else 'FLOAT'}|{word}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        if value == self.word or isinstance(value, self.kind):
            return value
        try:
            return self.kind(value)
        except ValueError:
            number = "whole number" if self.kind is int else "number"
            self.fail(f"{value!r} is neither a {number} nor {self.word!r}", param, ctx)


def choice(name: str, *known: str, help: str) -> Callable[[Command], Command]:
    """An option that is one of a few words, the first unless another is given."""
    words = click.Choice(known)
    return click.option(name, type=words, default=known[0], show_default=True, help=help)


hops = partial(click.option, "--hops", type=Numbers(), show_default=True)
wiring = partial(choice, "--wiring", "linear", "paper", "joint", "released-vgg")
num_classes = click.option(
    "--num-classes", type=int, help="Classes of the model; its zoo's default if absent."
)
input_shape = click.option(
    "--input", "input_shape", type=Numbers(), help="Input shape without batch: 3,32,32."
)
pretrained = click.option(
    "--pretrained",
    is_flag=True,
    help="Trained weights of torchvision or timm, where this machine has them; none is fetched.",
)
data_root = partial(
    click.option,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of data sets; by default N2NFX_DATA, or ~/.cache/n2nfx.",
)
out_of_runs = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs",
    show_default=True,
    help="Folder of runs; recipes share those that they have in common.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
