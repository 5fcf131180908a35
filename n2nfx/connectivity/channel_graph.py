"""The channel graph of a network: its channel map contracted to the channels of its layers."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, fx

from n2nfx.bind import bind, computed_weights, is_bound, with_acting_masks
from n2nfx.connectivity.assembly import assemble
from n2nfx.connectivity.channels import follow_channels
from n2nfx.connectivity.constants import constant_at
from n2nfx.connectivity.contraction import Applied, Contraction, contract
from n2nfx.connectivity.counting import count_effective
from n2nfx.connectivity.graph import Aggregation, ChannelGraph, Residual
from n2nfx.connectivity.relations import ChannelMap
from n2nfx.connectivity.values import Value
from n2nfx.connectivity.weights import Use
from n2nfx.errors import CannotOperate, UsageError, did_you_mean
from n2nfx.graphmodule import graphs_of
from n2nfx.intact import require_intact
from n2nfx.network import Network
from n2nfx.tracing.layers import nodes_of
from n2nfx.tracing.ops import kind_of, name_of


def channel_graph(
    network: Network,
    weight: Aggregation = "abs_sum",
    residual: Residual = "identity",
    strict: bool = False,
    fold_norms: bool = False,
) -> ChannelGraph:
    """The graph of a network's channels: those of its inputs, and the outputs of every layer.

    An edge's weight is that of the kept weights between two channels, the kernel and the places
    of a channel that is flattened taken together: their sum of absolute values (`abs_sum`), root
    of the sum of squares (`l2`), number (`count`), or 1 (`binary`). Where different channels meet
    in a sum or product, an edge of weight 1 joins them (`identity`), or they are one node
    (`merge`). Skip branches add edges and no nodes. `fold_norms` multiplies a layer's weights by
    the scale of the norm that reads its output (of a batch norm in evaluation), if one does. The
    masks are those at work in the network's module, or its own where none are.

    An operation without a rule is a node of its own, named in `.hubs`; `strict` refuses it. Of a
    model that does something else in training, the graph that runs more layers is taken. Raises
    `UsageError` for an unknown option, and `CannotOperate` for weights that are not finite, a
    graph without shapes, a layer or a part that was replaced, and hubs if `strict`. Source:
    section 3.2 of the paper.
    """
    _require_one_of("weight", weight, get_args(Aggregation))
    _require_one_of("residual", residual, get_args(Residual))
    network = with_acting_masks(network)
    found, hubs = contraction_of(network, weight, residual, fold_norms)
    if hubs and strict:
        raise CannotOperate(
            f"{len(hubs)} operations are not followed channel by channel, and strict refuses them: "
            f"{', '.join(hubs)}; without it, each is a node of its own"
        )
    groups, blocks = assemble(found, weight == "binary")
    effective = count_effective(network)
    return ChannelGraph(
        groups=groups,
        blocks=blocks,
        aggregation=weight,
        residual=residual,
        hubs=hubs,
        density=network.density,
        effective_density=effective.effective_density,
        dead_channels=effective.dead_channels,
        fold_norms=fold_norms,
    )


def contraction_of(
    network: Network,
    weight: Aggregation = "abs_sum",
    residual: Residual = "identity",
    fold_norms: bool = False,
) -> tuple[Contraction, tuple[str, ...]]:
    """The nodes and edges of the graph as they are found, and the hubs' names.

    The edges go from what is read to what is written, so that what a channel leads to can be told.
    """
    require_intact(network)
    network = _with_masks_at_work(network)
    names = {layer.weight: layer.name for layer in network.layers}
    branches = {skip.weight for skip in network.skips}

    def applied(use: Use) -> Applied:
        own = "" if use.kept is None else use.kept.weight
        return Applied(use, names.get(own, ""), own in branches)

    channels, values = follow_channels(network, lambda module: [_richest(module)], applied)
    scales = _scales(channels, values) if fold_norms else {}
    return contract(channels, weight, residual, scales), tuple(dict.fromkeys(channels.hubs))


def _require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = did_you_mean(str(value), known)
        signed = "; no weight is signed, or the Laplacian would be indefinite and heat grow"
        told = signed if name == "weight" else ""
        raise UsageError(f"{name} must be one of {', '.join(known)}, not {value!r}{near}{told}")


def _richest(module: fx.GraphModule) -> fx.Graph:
    """The graph that uses most weights; the first of those that use as many."""
    first, *others = graphs_of(module)
    if not others:
        return first

    def used(graph: fx.Graph) -> int:
        return len({layer.weight for _, layer in nodes_of(module, graph)})

    return max((first, *others), key=used)


def _with_masks_at_work(network: Network) -> Network:
    """The network, its masks acting where layers compute the weights that they use.

    A weight that is standardized depends on which others are kept. Parameters are shared with the
    network, not copied.
    """
    if is_bound(network) or not computed_weights(network.module):
        return network
    shared: dict[int, Any] = {id(tensor): tensor for tensor in network.module.parameters()}
    module = copy.deepcopy(network.module, shared)
    acting = replace(network, module=module)
    bind(acting)
    return acting


# Norms that are folded into the layers before them.


def _scales(channels: ChannelMap, values: Mapping[fx.Node, Any]) -> dict[int, np.ndarray]:
    """What the outputs of a layer are multiplied by in the one norm that reads them, by value."""
    layers = {link.target for link in channels.links if isinstance(link.relation, Applied)}
    found: dict[int, list[tuple[fx.GraphModule, fx.Node]]] = {}
    for node, value in values.items():
        module = node.graph.owning_module
        assert module is not None
        number = value.number if isinstance(value, Value) else None
        if number in layers and kind_of(module, node) in ("norm", "fused"):
            assert number is not None
            found.setdefault(number, []).append((module, node))
    scales = {value: _scale(*norms[0]) for value, norms in found.items() if len(norms) == 1}
    return {
        value: scale.double().cpu().numpy()
        for value, scale in scales.items()
        if scale is not None and tuple(scale.shape) == (channels.sizes[value],)
    }


def _scale(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The absolute factor of each channel of a norm, as far as it does not depend on the input."""
    weight, variance, eps = _parts(module, node)
    if weight is None and variance is None:
        return None
    with torch.no_grad():
        scale = torch.ones(()) if weight is None else weight.detach().abs()
        return scale if variance is None else scale / (variance + eps).sqrt()


def _parts(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor | None, Tensor | None, float]:
    """Weight, running variance and epsilon of a norm."""
    if node.op == "call_module":
        norm = module.get_submodule(str(node.target))
        weight, variance = getattr(norm, "weight", None), getattr(norm, "running_var", None)
        return weight, variance, getattr(norm, "eps", 0.0)
    place = {"batch_norm": 3, "layer_norm": 2, "group_norm": 2, "rms_norm": 2, "instance_norm": 3}
    weight = _operand(module, node, place[name_of(node)], "weight")
    if name_of(node) != "batch_norm":
        return weight, None, 0.0
    eps = node.args[7] if len(node.args) > 7 else node.kwargs.get("eps", 1e-5)
    assert isinstance(eps, float)
    return weight, _operand(module, node, 2, "running_var"), eps


def _operand(module: fx.GraphModule, node: fx.Node, place: int, name: str) -> Tensor | None:
    operand = node.args[place] if len(node.args) > place else node.kwargs.get(name)
    return constant_at(module, operand) if isinstance(operand, fx.Node) else None
