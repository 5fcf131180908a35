"""What a model is made of, and where skips could go: for a person, as tables, or as JSON data."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from rich.table import Table
from torch import fx

from n2nfx import models
from n2nfx.cli.tables import console, percent, say, table, times
from n2nfx.graphmodule import join, nodes_in, parts_of
from n2nfx.network import Layer, Network, Origin, Refusal
from n2nfx.source import from_model
from n2nfx.splice import prepare
from n2nfx.tracing.layers import nodes_of
from n2nfx.tracing.ops import first_tensor
from n2nfx.wiring import TWIN, Branches, Options, Wiring, find_branches

_INSIDE = "inside of a module that is called whole"
_TOLD = 12  # reasons that are shown; --json has every pair


@dataclass(frozen=True, eq=False)
class Overview:
    """A reference network, and the branches that it could have.

    `layouts` says for every layer's weight how the layer's output is laid out, `branches` what
    there is for every hop alone, and `together` for all of them. Seconds are those of tracing.
    """

    network: Network
    nodes: int
    seconds: float
    layouts: Mapping[str, str]
    branches: Mapping[int, Branches]
    together: Branches


def look_at(
    model: str,
    hops: Sequence[int],
    wiring: str,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    pretrained: bool = False,
) -> Overview:
    """Build and trace a model, and find the branches for every hop.

    Raises `UsageError` for a name or a hop that cannot be, `CannotOperate` for a model, and
    `DamagedFile` for its trained weights.
    """
    laid = {hop: Options(hops=(hop,), wiring=cast(Wiring, wiring)) for hop in sorted({*hops})}
    together = Options(hops=tuple(hops), wiring=cast(Wiring, wiring))
    built = models.build(
        model,
        num_classes=num_classes,
        input_shape=input_shape,
        pretrained="yes" if pretrained else "no",
    )
    origin = Origin(num_classes=num_classes, input_shape=input_shape, pretrained=pretrained)
    start = time.perf_counter()
    network = from_model(built, None, origin)
    seconds = time.perf_counter() - start
    nodes = sum(1 for _ in nodes_in(network.module))
    layouts = _layouts(network)
    prepare(network)  # as N2NSkip does, so that what is found is what transform would find
    return Overview(
        network=network,
        nodes=nodes,
        seconds=seconds,
        layouts=layouts,
        branches={hop: find_branches(network, options) for hop, options in laid.items()},
        together=find_branches(network, together),
    )


def _layouts(network: Network) -> dict[str, str]:
    """How each layer's output is laid out at its first call; others are inside of something."""
    found: dict[str, str] = {}
    for path, part in parts_of(network.module):
        small, large = first_tensor(part.graph).meta["spec"]
        batches = small.shape[0], large.shape[0]
        for node, layer in nodes_of(part, part.graph):
            found.setdefault(join(path, layer.weight), _layout(node, layer, batches))
    return {layer.weight: found.get(layer.weight, _INSIDE) for layer in network.layers}


def _layout(node: fx.Node, layer: Layer, batches: tuple[int, int]) -> str:
    small, large = node.meta["spec"]
    folded = (small.shape[0], large.shape[0]) != batches
    dimensions = len(large.shape) - 1
    if dimensions == 1:
        name = "vectors"
    elif layer.kind == "conv":
        name = "maps"
    else:
        name = "tokens" if dimensions == 2 else "maps, channels last"
    return f"{name}, batch folded" if folded else name


def as_data(overview: Overview) -> dict[str, Any]:
    """All of it but tensors, as JSON data."""
    network = overview.network
    return {
        "name": network.origin.name,
        "inputs": [asdict(spec) for spec in network.inputs],
        "totals": {
            "layers": len(network.layers),
            "weights": network.size,
            "multiply_adds": network.dense_flops,
            "nodes": overview.nodes,
            "trace_ms": 1e3 * overview.seconds,
        },
        "layers": [
            {**asdict(layer), "size": layer.size, "layout": overview.layouts[layer.weight]}
            for layer in network.layers
        ],
        "hops": [{"hop": hop, **_pairs(found)} for hop, found in overview.branches.items()],
        "together": _pairs(overview.together),
        "notes": list(network.notes),
    }


def _pairs(branches: Branches) -> dict[str, Any]:
    return {
        "room": branches.capacity,
        "skips": [
            {
                "source": skip.source,
                "target": skip.target,
                "hop": skip.hop,
                "kind": skip.kind,
                "weight_shape": skip.weight_shape,
                "size": skip.size,
            }
            for skip in branches.skips
        ],
        "refused": [asdict(refusal) for refusal in branches.refused],
    }


def show(overview: Overview) -> None:
    """Print the layers, how they are laid out, the totals, and the skips for every hop."""
    out, network = console(), overview.network
    out.print(_layers(overview))
    out.print(_chains(overview))
    out.print(_totals(overview))
    out.print(_skips(overview))
    refused = [refusal for found in overview.branches.values() for refusal in found.refused]
    reasons = Counter(map(_reason, refused)).most_common()
    for reason, count in reasons[:_TOLD]:
        say(out, f"no skip between {count:,} pairs of layers: {reason}")
    if len(reasons) > _TOLD:
        left = sum(count for _, count in reasons[_TOLD:])
        say(out, f"no skip between {left:,} more pairs for other reasons: --json has them all")
    for note in network.notes:
        say(out, f"note: {note}")


def _layers(overview: Overview) -> Table:
    made = table("layer", "kind", "weight", "size", "reads", "writes", "uses")
    for layer in overview.network.layers:
        shapes = times(layer.reads), times(layer.writes)
        numbers = f"{layer.size:,}", *shapes, f"{layer.uses:,}"
        made.add_row(layer.name, layer.kind, times(layer.weight_shape), *numbers)
    return made


def _chains(overview: Overview) -> Table:
    """The layers by how their outputs are laid out."""
    network, chains = overview.network, dict[str, list[Layer]]()
    for layer in network.layers:
        chains.setdefault(overview.layouts[layer.weight], []).append(layer)
    made = table("laid out as", "from", "layers", "weights", "share")
    for layout, layers in chains.items():
        size = sum(layer.size for layer in layers)
        numbers = f"{len(layers):,}", f"{size:,}", percent(size, network.size)
        made.add_row(layout, layers[0].name, *numbers)
    return made


def _totals(overview: Overview) -> Table:
    network = overview.network
    columns = "weights", "multiply-adds", "layers", "nodes", "trace ms"
    made = table(str(network.origin.name), *columns, left=1)
    numbers = network.size, network.dense_flops, len(network.layers), overview.nodes
    made.add_row("in all", *(f"{number:,}" for number in numbers), f"{1e3 * overview.seconds:,.0f}")
    return made


def _skips(overview: Overview) -> Table:
    size = overview.network.size
    made = table("skips with hop", "legal", "room", "of all weights", "refused", left=1)
    rows = {str(hop): found for hop, found in overview.branches.items()}
    for name, found in {**rows, "all of these": overview.together}.items():
        room = f"{found.capacity:,}", percent(found.capacity, size)
        made.add_row(name, f"{len(found.skips):,}", *room, f"{len(found.refused):,}")
    return made


def _reason(refusal: Refusal) -> str:
    """A refusal's reason; which other pair has the same branch is left to --json."""
    return f"{TWIN} another pair has" if refusal.reason.startswith(TWIN) else refusal.reason
