"""A numeric probe of channel graphs: one channel of a layer is perturbed, and one sees what moves.

All weights are positive and most are masked, so that much stays where it is; norms are left out,
since the statistics that a layer norm shares are no path.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, fx, nn

import n2nfx
from n2nfx.bind import bind
from n2nfx.connectivity.channel_graph import contraction_of
from n2nfx.connectivity.contraction import Contraction
from n2nfx.connectivity.graph import shape_of
from n2nfx.graphmodule import graphs_of
from n2nfx.masks import Masks
from n2nfx.network import Layer, Network
from n2nfx.tracing.layers import nodes_of
from n2nfx.tracing.ops import kind_of

_READS = 3  # channels that an output of a layer reads, about


@dataclass(frozen=True)
class Probe:
    """Channels of a layer that moved with one of another's, and those that the graph leads to."""

    start: str
    channel: int
    layer: str
    moved: frozenset[int]
    reached: frozenset[int]


def thinned(model: nn.Module, example: Tensor, seed: int = 0, reads: int = _READS) -> Network:
    """A model of positive weights that keep values about as large, most pairs masked."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for weight in (*model.parameters(), *model.buffers()):
            if weight.is_floating_point() and not weight.isinf().any():  # that is no limit
                weight.copy_(0.1 * torch.rand(weight.shape, generator=generator) + 0.05)
    network = n2nfx.trace(model, example.double())
    masks = {}
    for layer in network.layers:
        weight = network.module.get_parameter(layer.weight)
        pairs = layer.weight_shape[:2]
        kept = torch.rand(pairs, generator=generator) < reads / pairs[1]
        masks[layer.weight] = kept.reshape(*pairs, *(1 for _ in weight.shape[2:])).expand_as(weight)
        with torch.no_grad():
            size = max(1, round(weight.numel() / pairs[0] / pairs[1] * reads))
            weight.copy_((torch.rand(weight.shape, generator=generator) + 0.5) / size)
            weight.mul_(masks[layer.weight])
    return replace(network, masks=Masks(masks))


def without_norms(network: Network) -> tuple[fx.GraphModule, dict[fx.Node, Layer]]:
    """A copy of the module that computes the same without norms, and its calls of layers.

    Its masks are at work: a weight that is standardized is not zero where it is masked.
    """
    module = copy.deepcopy(network.module)
    for graph in graphs_of(module):
        live: set[fx.Node] = set()
        for node in list(graph.nodes):
            if node.op == "placeholder" or not live.isdisjoint(node.all_input_nodes):
                live.add(node)
            is_norm = node.op != "placeholder" and kind_of(module, node) in ("norm", "fused")
            if is_norm and node in live and node.args:  # and no weight's own, which stays
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
    module.recompile()
    calls = dict(nodes_of(module, module.graph))
    bind(replace(network, module=module))
    return module, calls


def probes(network: Network, x: Tensor, starts: Sequence[tuple[Layer, int]]) -> Iterator[Probe]:
    """Perturb one channel after the other, and see what moves in every layer behind it."""
    module, calls = without_norms(network)
    layers = once_called(network)
    calls = {node: layer for node, layer in calls.items() if layer in layers}
    found, _ = contraction_of(network)
    names = [group.name for group in found.groups]
    firsts = np.concatenate([[0], np.cumsum([group.size for group in found.groups])])
    edges = _directed(found)
    before = _Watched(module, calls).outputs(x)
    for start, channel in starts:
        after = _Watched(module, calls, start, channel).outputs(x)
        reached = _reached(edges, firsts[names.index(start.name)] + channel)
        for layer in layers:
            if layer is not start and layer.name in after:
                yield Probe(
                    start.name,
                    channel,
                    layer.name,
                    frozenset(_moved(before[layer.name], after[layer.name]).tolist()),
                    frozenset(_led_to(found, layer, reached).tolist()),
                )


def once_called(network: Network) -> list[Layer]:
    """Layers that are called at one place, as a module or as a function."""
    calls = [layer.weight for _, layer in nodes_of(network.module, network.module.graph)]
    return [layer for layer in network.layers if calls.count(layer.weight) == 1]


def _directed(found: Contraction) -> sparse.csr_array:
    """(targets, sources): which node is read for which."""
    n = sum(group.size for group in found.groups)
    ends = [found.units[::-1], found.merged, found.merged[::-1]]
    for piece in found.pieces:
        at = sparse.coo_array(piece.weights)
        ends.append((piece.targets[at.coords[0]], piece.sources[at.coords[1]]))
    rows, columns = (np.concatenate([pair[side] for pair in ends]) for side in (0, 1))
    return sparse.csr_array((np.ones(rows.size), (rows, columns)), shape=(n, n))


def _reached(edges: sparse.csr_array, start: int) -> np.ndarray:
    reached = np.zeros(shape_of(edges)[0])
    reached[start] = 1.0
    count = 0
    while reached.sum() > count:
        count = reached.sum()
        reached = np.minimum(reached + edges @ reached, 1.0)
    return reached


def _led_to(found: Contraction, layer: Layer, reached: np.ndarray) -> np.ndarray:
    """The channels of a layer that read a node that is reached.

    Its own nodes may be reached besides: by what is added to them behind the layer.
    """
    piece = next(piece for piece in found.pieces if piece.names == (layer.weight,))
    return np.flatnonzero(piece.weights @ reached[piece.sources])


class _Watched(fx.Interpreter):
    """Runs a module node by node: one channel of a layer is moved, what layers give is kept."""

    def __init__(
        self,
        module: fx.GraphModule,
        calls: Mapping[fx.Node, Layer],
        start: Layer | None = None,
        channel: int = 0,
    ) -> None:
        super().__init__(module)
        self._calls, self._start, self._channel = calls, start, channel
        self._seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        layer = self._calls.get(n)
        if layer is None:
            return result
        axis = result.dim() - (1 if layer.kind == "linear" else len(layer.weight_shape) - 1)
        if layer == self._start:
            result = result.clone()
            result.select(axis, self._channel).mul_(1.5).add_(0.1)
        self._seen[layer.name] = result.movedim(axis, 0).flatten(1).clone()
        return result

    @torch.no_grad()
    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """What each layer gives, (channels, all else)."""
        self.run(x)
        return self._seen


def _moved(before: Tensor, after: Tensor) -> np.ndarray:
    change = (after - before).abs().amax(1)
    return np.flatnonzero((change > 1e-13 * before.abs().amax()).numpy())
