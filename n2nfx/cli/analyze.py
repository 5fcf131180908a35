"""`n2nfx analyze`: the channel graph of a network and its heat, alone or beside a reference."""

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from n2nfx.cli import options
from n2nfx.errors import UsageError

SCHEMA = "n2nfx.analyze/1"


class Reals(click.ParamType):
    """Numbers separated by commas, as a tuple: 0.1,1,5."""

    name = "X,X,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers separated by commas", param, ctx)


_OF_NETWORKS = ("weight", "residual", "fold_norms", "strict")


def _require_a_network(asked: dict[str, Any]) -> None:
    """Raise `UsageError` for an option of how graphs are made, where graphs alone are given."""
    from n2nfx.connectivity.graph_files import SUFFIXES

    names = [asked[name] for name in ("one", "other", "reference") if asked[name] is not None]
    source = click.get_current_context().get_parameter_source
    if all(Path(name).suffix in SUFFIXES for name in names):
        for option in _OF_NETWORKS:
            if source(option) is ParameterSource.COMMANDLINE:
                raise UsageError(
                    f"--{option.replace('_', '-')} says how the graph of a network is made, and "
                    f"{names[0]} is a graph already: say it where that is exported"
                )


@click.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="[B]", required=False)
@click.option(
    "--reference", metavar="NAME", help="What A (and B) is compared with; as A may be named."
)
@options.choice(
    "--weight", "abs_sum", "l2", "count", "binary", help="How a kernel becomes one weight."
)
@options.choice("--residual", "identity", "merge", help="What a sum of two activations is.")
@click.option(
    "--fold-norms", is_flag=True, help="Multiply a layer's weights by the scale of its norm."
)
@click.option("--strict", is_flag=True, help="Refuse operations that no rule describes.")
@click.option("--times", type=Reals(), help="Absolute times, in place of --tau.")
@click.option(
    "--tau",
    type=Reals(),
    default="0.1,1,5,20",
    show_default=True,
    help="Times in units of the convention.",
)
@options.choice(
    "--time-convention",
    "both",
    "reference",
    "degree",
    help="What tau is divided by: the reference's smallest nonzero eigenvalue, or each graph's "
    "own mean degree.",
)
@click.option(
    "--k",
    type=Reals(),
    default="0.06",
    show_default=True,
    help="Share of the eigenvalues that alpha(K, t) is of; several with commas.",
)
@options.choice(
    "--alpha",
    "auto",
    "dense",
    "slq",
    "none",
    help="How alpha is computed: auto is exact to 2,000 nodes, then estimated with an interval.",
)
@options.choice(
    "--zero-modes",
    "paper",
    "nonzero",
    help="Whether alpha counts the zero eigenvalues of further components.",
)
@click.option("--matrix", is_flag=True, help="Also ||H - H||_F, of heat from every node.")
@click.option("--layers", is_flag=True, help="Also each layer's bipartite spectrum.")
@click.option("--seed", type=int, help="Of models named, and of what is drawn; 0.")
@click.option("--model", help="What an artifact of your own was made from: file.py:function.")
@options.num_classes
@options.input_shape
@click.option(
    "--pretrained/--no-pretrained",
    default=None,
    help="Whether models named have trained weights, as for transform; as the artifact had.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it: png, svg or pdf.")
@click.option("--export", type=click.Path(path_type=Path), help="Write the graph of A to a file.")
@options.as_json
def analyze(plot: Path | None, export: Path | None, as_json: bool, **asked: Any) -> None:
    """Show the channel graph of A and how heat spreads in it; compare B, or A, with a reference.

    A and B are models named as for transform, directories of artifacts, or graph files. With B
    and no --reference, A is the reference. A model that is named as a reference of an artifact is
    built as the artifact's was: with the same seed, classes and input, and with trained weights
    where it had them.
    """
    from n2nfx.cli.analysis import draw, study
    from n2nfx.cli.findings import as_data, show
    from n2nfx.cli.narrate import narrated
    from n2nfx.connectivity.graph_files import require_graph_file

    _require_a_network(asked)
    if export is not None:
        require_graph_file(export)
    if plot is not None:
        from n2nfx.connectivity.plots import require_picture

        require_picture(plot)
    with narrated():
        found = study(**asked)
        files = [found.graph_of_a.save(export)] if export is not None else []
        if plot is not None:
            files.append(draw(found, plot))
    if as_json:
        data = {"schema": SCHEMA, "asked": asked, **as_data(found)}
        data["files"] = [str(file) for file in files]
        click.echo(json.dumps(data, indent=2, allow_nan=False))
        return
    show(found, files)
