"""Which branches would add what a shortcut has added already, as in ResNets and transformers.

Such a branch doubles what it carries, and block after block that is exponential in the depth: 2,000
in place of 1 behind the last block of a ResNet50 (docs/decisions/0026).
"""

from collections.abc import Iterable, Sequence

from torch import fx

from n2nfx.graphmodule import join
from n2nfx.network import Network, Skip
from n2nfx.partwise import by_part, in_part, skips_of
from n2nfx.sites import Sites, entry_of
from n2nfx.tracing.ops import kind_of

_CARRIES = ("add", "passing", "activation")


def beside_shortcuts(network: Network, skips: Sequence[Skip]) -> frozenset[str]:
    """The names of those branches, none spliced yet, that share a summand with their target.

    A value's summands are what norms and layers gave to it, along sums, nonlinearities, and the
    branches before. What shares none is taken to be added.
    """
    return frozenset(
        name
        for path, part in by_part(network)
        for name in _beside(part, [in_part(skip, path) for skip in skips_of(skips, path)], path)
    )


def _beside(network: Network, skips: Iterable[Skip], path: str) -> set[str]:
    """Those of one graph, by the names that the whole network has."""
    sites = Sites(network.module, network.layers)
    ending: dict[fx.Node, list[tuple[fx.Node, str]]] = {}
    for skip in skips:
        for source, target in skip.calls:
            entry = entry_of(sites.by_name(skip.target, target), skip.at)
            value = sites.by_name(skip.source, source).activation
            ending.setdefault(entry, []).append((value, join(path, skip.name)))
    summands: dict[fx.Node, int] = {}  # a bit for each node that makes one
    beside: set[str] = set()
    for node, position in sites.position.items():
        summands[node] = 1 << position
        if kind_of(sites.module, node) in _CARRIES:
            summands[node] = 0
            for read in node.all_input_nodes:
                summands[node] |= summands[read]
        for value, name in ending.get(node, ()):
            if summands[value] & summands[node]:
                beside.add(name)
            summands[node] |= summands[value]
    return beside
