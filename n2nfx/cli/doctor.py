"""`n2nfx doctor`: whether n2nfx can work here, and the command for whatever is missing."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import click

from n2nfx.cli.text import printable
from n2nfx.errors import CannotOperate

if TYPE_CHECKING:
    from n2nfx.doctor import Finding

SCHEMA = "n2nfx.doctor/1"

_COLOURS = {"ok": "green", "warning": "yellow", "missing": "yellow", "broken": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Examine packages, devices, tools, room and data; exit with 3 where n2nfx cannot work.

    A package that is missing, or that crashes while it is imported, is told in a line like all
    others. A GPU, a compiler and data are good to have: without them n2nfx still works.
    """
    from n2nfx.doctor import examine

    findings = list(examine())
    stops = [finding.name for finding in findings if finding.stops]
    if as_json:
        listed = [asdict(finding) for finding in findings]
        data = {"schema": SCHEMA, "works": not stops, "findings": listed}
        click.echo(json.dumps(data, indent=2))
    else:
        _show(findings, stops)
    if stops:
        context.exit(CannotOperate.exit_code)


def _show(findings: "Sequence[Finding]", stops: Sequence[str]) -> None:
    width = max(len(finding.name) for finding in findings)
    for topic, found in groupby(findings, lambda finding: finding.topic):
        click.echo(topic)
        for one in found:
            mark = click.style(f"{one.state:<8}", fg=_COLOURS[one.state])
            click.echo(f"  {mark}{one.name:<{width}}  {printable(one.detail)}")
            if one.remedy:
                click.echo(f"          {'':<{width}}  {one.remedy}")
    told = f"n2nfx cannot work here: {', '.join(stops)}" if stops else "n2nfx works here"
    click.echo(told)
