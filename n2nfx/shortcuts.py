"""Which branches would add what a shortcut has added already, as in ResNets and transformers.

Such a branch doubles what it carries, and block after block that is exponential in the depth: 2,000
in place of 1 behind the last block of a ResNet50 (docs/decisions/0026).
"""

from collections.abc import Iterable

from torch import fx

from n2nfx.network import Network, Skip
from n2nfx.sites import Sites, entry_of
from n2nfx.tracing.ops import kind_of

_CARRIES = ("add", "passing", "activation")


def beside_shortcuts(network: Network, skips: Iterable[Skip]) -> frozenset[str]:
    """The names of those branches, none spliced yet, that share a summand with their target.

    A value's summands are what norms and layers gave to it, along sums, nonlinearities, and the
    branches before. What shares none is taken to be added.
    """
    sites = Sites(network.module, network.layers)
    ending: dict[fx.Node, list[tuple[fx.Node, str]]] = {}
    for skip in skips:
        entry = entry_of(sites.by_name(skip.target), skip.at)
        ending.setdefault(entry, []).append((sites.by_name(skip.source).activation, skip.name))
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
    return frozenset(beside)
