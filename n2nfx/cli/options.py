"""Options, and types of options, that several commands have."""

from functools import partial
from pathlib import Path
from typing import Any

import click


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
    """A whole number or one word."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.name = f"N|{word}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == self.word or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor {self.word!r}", param, ctx)


class ShareOr(click.ParamType):
    """A number or one word."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.name = f"FLOAT|{word}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        if value == self.word or isinstance(value, float):
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor {self.word!r}", param, ctx)


hops = partial(click.option, "--hops", type=Numbers(), show_default=True)
wiring = partial(
    click.option,
    "--wiring",
    type=click.Choice(["paper", "linear", "joint", "released-vgg"]),
    default="paper",
    show_default=True,
)
num_classes = click.option(
    "--num-classes", type=int, help="Classes of the model; its zoo's default if absent."
)
input_shape = click.option(
    "--input", "input_shape", type=Numbers(), help="Input shape without batch: 3,32,32."
)
data_root = partial(
    click.option,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of data sets; by default N2NFX_DATA, or ~/.cache/n2nfx.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
