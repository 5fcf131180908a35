"""Which branches meet a shortcut of the network's own, as in ResNets and transformers.

A branch that adds what a shortcut has added already doubles it, and block after block that is
exponential in the depth: 2,000 in place of 1 behind the last block of a ResNet50. Where the network
goes around a layer, no branch is needed for its signal to pass (docs/decisions/0026).
"""

from collections.abc import Callable, Sequence

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
    return _in_all_parts(_beside, network, skips)


def into_bypassed(network: Network, skips: Sequence[Skip]) -> frozenset[str]:
    """The names of those branches whose target is a layer that the network also goes around."""
    return _in_all_parts(_into_bypassed, network, skips)


def _in_all_parts(
    find: Callable[[Sites, list[Skip]], set[str]], network: Network, skips: Sequence[Skip]
) -> frozenset[str]:
    """What is found in each graph, by the names that the whole network has."""
    return frozenset(
        join(path, name)
        for path, part in by_part(network)
        for name in find(
            Sites(part.module, part.layers), [in_part(skip, path) for skip in skips_of(skips, path)]
        )
    )


def _into_bypassed(sites: Sites, skips: list[Skip]) -> set[str]:
    around = _bypassed(sites)
    return {
        skip.name
        for skip in skips
        if any(sites.by_name(skip.target, call).output in around for _, call in skip.calls)
    }


def _bypassed(sites: Sites) -> set[fx.Node]:
    """The nodes over which some value passes from the input's side to the output's."""
    reached: set[fx.Node] = set()
    for node in sites.position:
        from_input = node.op == "placeholder" or not reached.isdisjoint(node.all_input_nodes)
        if from_input and isinstance(node.meta.get("spec"), tuple):  # sizes carry no signal
            reached.add(node)
    needed: set[fx.Node] = set()
    for node in reversed(sites.position):
        if node.op == "output" or not needed.isdisjoint(node.users):
            needed.add(node)
    flow = reached & needed
    bypassed, furthest = set[fx.Node](), 0
    for node, position in sites.position.items():
        if furthest > position:
            bypassed.add(node)
        if node in flow:
            furthest = max(furthest, *(sites.position[u] for u in node.users if u in flow), 0)
    return bypassed


def _beside(sites: Sites, skips: list[Skip]) -> set[str]:
    ending: dict[fx.Node, list[tuple[fx.Node, str]]] = {}
    for skip in skips:
        for source, target in skip.calls:
            entry = entry_of(sites.by_name(skip.target, target), skip.at)
            value = sites.by_name(skip.source, source).activation
            ending.setdefault(entry, []).append((value, skip.name))
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
