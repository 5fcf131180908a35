"""An outcome for a person, as tables, and for a program, as JSON data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from n2nfx.cli.tables import console, percent, say, table, times
from n2nfx.connectivity import Collapse, Effective, count_effective, find_collapse
from n2nfx.network import Network, Row
from n2nfx.outcome import Outcome

_TOLD = 3  # operations that are named
_CONTROLS = {
    "shuffle": "as many weights in every layer and skip, in other places",
    "reinit": "the same masks over weights that were drawn anew",
    "sequential": "what skips would take is spent on the layers",
}


def as_data(outcome: Outcome) -> dict[str, Any]:
    """Everything of an outcome but its tensors, as JSON data."""
    plan = outcome.plan.model_dump(mode="json")
    network = outcome.network
    found = count_effective(network)
    collapse = find_collapse(network, effective=found)
    _warn(found, collapse)
    return {
        "model": network.origin.name,
        "notes": list(network.notes),
        "counts": plan["counts"],
        "density": network.density,
        "flop_density": network.flop_density,
        "connectivity": {
            "effective": found.effective_nnz,
            "effective_density": found.effective_density,
            "channels": found.channels,
            "dead_channels": found.dead_channels,
            "connected": found.connected,
            "collapse": None if collapse is None else asdict(collapse),
            "hubs": list(found.hubs),
        },
        "ledger": _ledger(network, found),
        "refused": [asdict(refusal) for refusal in network.refused],
        "steps": plan["steps"],
        "versions": plan["versions"],
        "graph_sha256": outcome.graph_sha256,
    }


def _ledger(network: Network, found: Effective) -> list[dict[str, Any]]:
    """The ledger's rows, with what paths make of each; a residual skip has no weights for any."""
    paths = {
        row.weight: {
            "effective": row.effective,
            "channels": row.channels,
            "dead_channels": row.dead,
        }
        for row in (*found.layers, *found.skips)
    }
    none = {"effective": 0, "channels": 0, "dead_channels": 0}
    return [{**row._asdict(), **paths.get(row.weight, none)} for row in network.ledger()]


def show(outcome: Outcome, asked: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Print the ledger: each layer, each skip, and the sums last."""
    out = console()
    network = outcome.network
    rows = network.ledger()
    out.print(_layers(rows[: len(network.layers)]))
    if network.skips:
        out.print(_skips(outcome))
    found = count_effective(network)
    out.print(_sums(outcome, asked, found))
    _warn(found, find_collapse(network, effective=found))
    if found.hubs:
        say(out, _unfollowed(found.hubs))
    if asked["control"] != "none":
        say(out, f"control: {_CONTROLS[asked['control']]}")
    reasons = Counter(refusal.reason for refusal in network.refused)
    for reason, count in reasons.most_common():
        say(out, f"no skip between {count} pairs of layers: {reason}")
    for file in files:
        say(out, f"wrote {file} ({file.stat().st_size:,} bytes)")


def _layers(rows: Sequence[Row]) -> Table:
    made = table("layer", "weight", *("size", "kept", "density", "uses"))
    for row in rows:
        numbers = f"{row.size:,}", f"{row.kept:,}", percent(row.kept, row.size), f"{row.uses:,}"
        made.add_row(row.name, times(row.shape), *numbers)
    return made


def _skips(outcome: Outcome) -> Table:
    made = table("skip from", "to", *("hop", "weight", "room", "kept"), left=2)
    for skip in outcome.network.skips:
        numbers = times(skip.weight_shape), f"{skip.size:,}", f"{skip.nnz:,}"
        made.add_row(skip.source, skip.target, str(skip.hop), *numbers)
    return made


def _warn(found: Effective, collapse: Collapse | None) -> None:
    """Say on stderr what makes a network useless, or a layer."""
    if collapse is not None:
        click.echo(f"warning: {collapse}", err=True)
    if found.empty_layers:
        click.echo(f"warning: without a single weight: {', '.join(found.empty_layers)}", err=True)


def _unfollowed(hubs: Sequence[str]) -> str:
    """Which operations are not followed channel by channel, the first of them by name."""
    names = list(dict.fromkeys(hubs))
    told = ", ".join(names[:_TOLD]) + (", ..." if len(names) > _TOLD else "")
    return f"taken as a whole, so that effective is an upper bound: {told} ({len(hubs)} in all)"


def _split(ratio: float | str) -> tuple[str, str] | None:
    """The shares of layers and skips as they were asked for, None without skips."""
    if isinstance(ratio, str):
        return ratio, ratio
    return (f"{1 - ratio:.4%}", f"{ratio:.4%}") if ratio else None


def _sums(outcome: Outcome, asked: Mapping[str, Any], found: Effective) -> Table:
    network, counts = outcome.network, outcome.counts
    made = table(str(network.origin.name), *("asked", "count", "of", "share"), left=1)
    made.add_row(
        "weights",
        f"{asked['density']:.4%}",
        f"{counts.kept:,}",
        f"{counts.reference:,}",
        percent(counts.kept, counts.reference),
    )
    shares = _split(0.0 if asked["control"] == "sequential" else asked["skip_ratio"])
    names = "  sequential", f"  in {len(network.skips)} skips"
    parts = zip(names, shares, (counts.sequential, counts.skip), strict=True) if shares else ()
    for name, share, count in parts:
        made.add_row(name, share, f"{count:,}", f"{counts.kept:,}", percent(count, counts.kept))
    made.add_row(
        "effective",
        "",
        f"{found.effective_nnz:,}",
        f"{counts.reference:,}",
        percent(found.effective_nnz, counts.reference),
    )
    made.add_row(
        "dead channels",
        "",
        f"{found.dead_channels:,}",
        f"{found.channels:,}",
        percent(found.dead_channels, found.channels),
    )
    made.add_row(
        "multiply-adds",
        "",
        f"{counts.multiply_adds:,}",
        f"{counts.reference_multiply_adds:,}",
        percent(counts.multiply_adds, counts.reference_multiply_adds),
    )
    return made
