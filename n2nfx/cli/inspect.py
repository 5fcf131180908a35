"""`n2nfx inspect`: what a model is made of, and where skips could go, before anything is done."""

import json

import click

from n2nfx.cli import options

SCHEMA = "n2nfx.inspect/1"


@click.command()
@click.argument("model")
@options.hops(default="1,2,3,4,5", help="Layers that a branch would bypass.")
@options.wiring(help="Where a branch would enter its target.")
@options.num_classes
@options.input_shape
@options.pretrained
@options.as_json
def inspect(
    model: str,
    hops: tuple[int, ...],
    wiring: str,
    num_classes: int | None,
    input_shape: tuple[int, ...] | None,
    pretrained: bool,
    as_json: bool,
) -> None:
    """Show the layers of MODEL, and for every hop the legal skips and why other pairs have none.

    MODEL is named as for transform. Nothing is pruned and nothing is written.
    """
    from n2nfx.cli.narrate import narrated
    from n2nfx.cli.overview import as_data, look_at, show

    with narrated():
        overview = look_at(model, hops, wiring, num_classes, input_shape, pretrained)
    if as_json:
        asked = {"model": model, "hops": hops, "wiring": wiring}
        data = {"schema": SCHEMA, "asked": asked, **as_data(overview)}
        click.echo(json.dumps(data, indent=2))
        return
    show(overview)
