"""`n2nfx inspect`: what a model is made of, and where skips could go, before anything is done."""

import json

import click

from n2nfx.cli.options import Numbers

SCHEMA = "n2nfx.inspect/1"


@click.command()
@click.argument("model")
@click.option(
    "--hops",
    type=Numbers(),
    default="1,2,3,4,5",
    show_default=True,
    help="Layers that a branch would bypass.",
)
@click.option(
    "--wiring",
    type=click.Choice(["paper", "linear", "joint"]),
    default="paper",
    show_default=True,
    help="Where a branch would enter its target.",
)
@click.option("--num-classes", type=int, help="Classes of the model; its zoo's default if absent.")
@click.option("--input", "input_shape", type=Numbers(), help="Input shape without batch: 3,32,32.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect(
    model: str,
    hops: tuple[int, ...],
    wiring: str,
    num_classes: int | None,
    input_shape: tuple[int, ...] | None,
    as_json: bool,
) -> None:
    """Show the layers of MODEL, and for every hop the legal skips and why other pairs have none.

    MODEL is named as for transform. Nothing is pruned and nothing is written.
    """
    from n2nfx.cli.narrate import narrated
    from n2nfx.cli.overview import as_data, look_at, show

    with narrated():
        overview = look_at(model, hops, wiring, num_classes, input_shape)
    if as_json:
        asked = {"model": model, "hops": hops, "wiring": wiring}
        data = {"schema": SCHEMA, "asked": asked, **as_data(overview)}
        click.echo(json.dumps(data, indent=2))
        return
    show(overview)
