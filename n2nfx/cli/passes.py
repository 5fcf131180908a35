"""`n2nfx passes`: what operations there are, and what they take."""

import dataclasses
import inspect
import json
from typing import Any

import click

SCHEMA = "n2nfx.passes/1"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def passes(as_json: bool) -> None:
    """List the passes of the library and of installed packages, with their arguments."""
    from n2nfx.registry import passes as known

    found = [_describe(name, cls) for name, cls in known().items()]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "passes": found}, indent=2))
        return
    for entry in found:
        arguments = " ".join(
            name if default is None else f"{name}={default}"
            for name, default in entry["arguments"].items()
        )
        click.echo(f"{entry['name']}{{{arguments}}}\n    {entry['summary']}")


def _describe(name: str, cls: type) -> dict[str, Any]:
    """A pass's name, its class, the first line of its docstring, and arguments with defaults."""
    arguments = {
        field.name: None if field.default is dataclasses.MISSING else _text(field.default)
        for field in dataclasses.fields(cls)
    }
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    path = f"{cls.__module__}.{cls.__qualname__}"
    return {"name": name, "class": path, "summary": summary, "arguments": arguments}


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
