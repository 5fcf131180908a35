"""`n2nfx models`: the names that a model can have."""

import json

import click

SCHEMA = "n2nfx.models/1"


@click.command()
@click.argument("filter", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def models(filter: str, as_json: bool) -> None:
    """List the models of torchvision, timm and our zoo; FILTER is a part of a name or a glob."""
    from n2nfx.errors import UsageError
    from n2nfx.models import names

    found = names(filter)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "models": found}, indent=2))
        return
    if not found:
        raise UsageError(f"no model's name has {filter!r} in it")
    click.echo("\n".join(found))
