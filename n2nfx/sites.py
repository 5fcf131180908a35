"""Where the layers lie in a traced graph, and how far they are from each other.

The layers form a graph: v follows u when some path leads from u to v with no other layer between.
The hop of a pair is the *longest* path between its ends, counted in layers, so that residual
identities do not make everything neighbours; gates (squeeze-excite) count for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import fx
from torch.nn.modules.batchnorm import _BatchNorm

from n2nfx.layouts import Grids, Layout, Layouts, Misfit, joined_tokens
from n2nfx.network import INPUT, At, Layer
from n2nfx.tracing.layers import nodes_of
from n2nfx.tracing.ops import first_tensor, is_size, kind_of


@dataclass(frozen=True, eq=False)
class Site:
    """Where one call of a layer lies in the graph.

    `output` is the layer's own node, `before` the node just before the nonlinearity (after the
    norm; in a residual block the sum), `nonlinearity` the node that applies it, or None,
    `activation` the node that carries the output activation. `last` says whether the channels are
    the last dimension rather than the second, `sealed` whether the nonlinearity is inside the norm.
    `call` counts the calls of one layer. The network's input is a site whose nodes are all the
    same and whose layer is None.
    """

    layer: Layer | None
    output: fx.Node
    before: fx.Node
    nonlinearity: fx.Node | None
    activation: fx.Node
    last: bool
    sealed: bool = False
    call: int = 0

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name if self.layer else INPUT


def entry_of(site: Site, at: At) -> fx.Node:
    """The node that a branch is added to."""
    return {"norm": site.output, "activation": site.before, "output": site.activation}[at]


def own_norm(module: fx.GraphModule, site: Site) -> fx.Node | None:
    """The batch norm right between a layer and its nonlinearity, or None if other things are."""
    norm = site.before
    alone = site.nonlinearity is not None and norm.args[:1] == (site.output,)
    if not alone or norm.op != "call_module":
        return None
    return norm if isinstance(module.get_submodule(str(norm.target)), _BatchNorm) else None


class Sites:
    """All sites of a graph, the distances between them, and what each node's tensor looks like.

    The graph is one of the module's (`graphs_of`); its own unless another is given.
    """

    def __init__(
        self, module: fx.GraphModule, layers: Sequence[Layer], graph: fx.Graph | None = None
    ) -> None:
        self.module = module
        self.graph = module.graph if graph is None else graph
        self.position = {node: index for index, node in enumerate(self.graph.nodes)}
        known = {layer.weight: layer for layer in layers}
        calls = [
            (node, known[layer.weight])
            for node, layer in nodes_of(module, self.graph)
            if layer.weight in known
        ]
        self.sites = [self._input(calls[0][1] if calls else None)]
        self.calls: dict[str, int] = {INPUT: 1}
        for node, layer in calls:
            call = self.calls.setdefault(layer.name, 0)
            self.sites.append(replace(self._site(layer, node), call=call))
            self.calls[layer.name] += 1
        self._layouts = Layouts(module, self.graph, self.sites[0].last)
        self._precedents = self._find_precedents()
        self._gates = self._find_gates()
        self._weights = [0 if gate else 1 for gate in self._gates]
        self._weights[0] = 0

    def by_name(self, name: str, call: int = 0) -> Site:
        """The site of one call of a layer, or of the input."""
        return next(site for site in self.sites if (site.name, site.call) == (name, call))

    def layout(self, site: Site, node: fx.Node) -> Layout | Misfit:
        """How the value of one of a site's nodes lies in its tensor."""
        return self._layouts.of(node, site.last, _rank(site.output))

    def grids(self) -> Grids:
        """What the network's own maps say of rows of tokens."""
        layers = [site.layer for site in self.sites if site.layer and site.layer.kind == "conv"]
        maps = [shape[1:] for layer in layers for shape in (layer.reads, layer.writes)]
        whole = self.layout(self.sites[0], self.sites[0].output)
        return Grids(
            (places for places in maps if len(places) > 1),
            joined_tokens(self.graph),
            whole.places if isinstance(whole, Layout) else (),
        )

    def _input(self, first: Layer | None) -> Site:
        """The network's input, its channels where the first layer has them if it reads it whole."""
        node = first_tensor(self.graph)
        linear = first is not None and first.kind == "linear"
        whole = first is not None and first.reads == node.meta["spec"][1].shape[1:]
        return Site(None, node, node, None, node, last=_rank(node) == 2 or (linear and whole))

    def _site(self, layer: Layer, node: fx.Node) -> Site:
        """Follow the layer's only reader until a nonlinearity, a fork, or anything else."""
        at, added, normed = node, False, False
        last = layer.kind == "linear"
        while True:
            readers = [user for user in at.users if not is_size(user)]
            if len(readers) != 1 or readers[0].op == "output":
                break
            reader = readers[0]
            kind = kind_of(self.module, reader)
            if kind == "activation":
                return Site(layer, node, at, reader, reader, last)
            if kind == "fused" and not added:
                return Site(layer, node, node, reader, reader, last, sealed=True)
            if kind == "norm" and not (normed or added):
                normed = True
            elif kind == "add":
                added = True
            elif kind != "passing":
                break
            at = reader
        return Site(layer, node, at, None, at, last)

    def _find_precedents(self) -> list[frozenset[int]]:
        """For every site the sites just before it, no other layer between."""
        index = {site.output: number for number, site in enumerate(self.sites)}
        nearest: dict[fx.Node, frozenset[int]] = {}
        precedents: list[frozenset[int]] = [frozenset()] * len(self.sites)
        for node in self.graph.nodes:
            reads = [] if is_size(node) else node.all_input_nodes
            before = [nearest[read] for read in reads]
            here = frozenset().union(*before) if len(before) != 1 else before[0]
            if node in index:
                precedents[index[node]] = here
                here = frozenset({index[node]})
            nearest[node] = here
        return precedents

    def _find_gates(self) -> list[bool]:
        """Sites that write one place only while a later one writes many: squeeze-excite gates."""
        places = [self._count_places(site) for site in self.sites]
        followed = [False] * len(self.sites)
        for number in reversed(range(1, len(self.sites))):
            spread = followed[number] or places[number] != 1
            for before in self._precedents[number]:
                followed[before] = followed[before] or spread
        return [
            bool(site.layer) and places[number] == 1 and followed[number]
            for number, site in enumerate(self.sites)
        ]

    def _count_places(self, site: Site) -> int | None:
        """Places of a site's output, the input's aside; None where they are not known."""
        layout = self.layout(site, site.output)
        if site.layer is None or isinstance(layout, Misfit) or layout.fold.size > 1:
            return None
        return prod(layout.places)

    def sources(self) -> list[int]:
        """The numbers of the sites that a branch may leave."""
        return [number for number, gate in enumerate(self._gates) if not gate]

    def depths(self) -> dict[int, int]:
        """How far every site is from the input, in layers."""
        return self._distances(0, len(self.sites))

    def within(self, source: int, furthest: int) -> dict[int, list[int]]:
        """The sites that lie 1, 2, ... up to `furthest` layers behind a site, by distance."""
        found: dict[int, list[int]] = {}
        for target, distance in self._distances(source, furthest).items():
            if target != source and not self._gates[target] and distance <= furthest:
                found.setdefault(distance, []).append(target)
        return found

    def _distances(self, source: int, furthest: int) -> dict[int, int]:
        """Longest paths from a site; what lies beyond `furthest` is told only to be beyond."""
        distance = {source: 0}
        for target in range(source + 1, len(self.sites)):
            reached = [distance[near] for near in self._precedents[target] if near in distance]
            if reached:
                distance[target] = min(max(reached) + self._weights[target], furthest + 1)
        return distance


def _rank(node: fx.Node) -> int:
    """How many dimensions a node's tensor has."""
    return len(node.meta["spec"][1].shape)
