"""The prunable layers of a traced module, in order of execution."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional

from n2nfx.network import Layer
from n2nfx.tracing.weights import is_weighted

_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}


def find_layers(module: fx.GraphModule) -> tuple[Layer, ...]:
    """Every prunable weight once, however often and under how many names it is used."""
    names = _first_names(module)
    layers: dict[str, Layer] = {}
    for node in module.graph.nodes:
        found = layer_at(module, node, names)
        if found is None:
            continue
        if found.weight in layers:
            known = layers[found.weight]
            layers[found.weight] = replace(known, uses=known.uses + found.uses)
        else:
            layers[found.weight] = found
    return tuple(layers.values())


def _first_names(module: nn.Module) -> dict[int, str]:
    """The first name of every parameter: tied weights are one weight."""
    return {id(parameter): name for name, parameter in module.named_parameters()}


def layer_at(module: fx.GraphModule, node: fx.Node, names: dict[int, str]) -> Layer | None:
    """The layer that a node calls, or None."""
    used = _weight_at(module, node)
    if used is None:
        return None
    name, weight, kind, transposed = used
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return Layer(
        name=name,
        kind=kind,
        weight=names[id(weight)],
        weight_shape=tuple(weight.shape),
        reads=_shape(source),
        writes=_shape(node),
        uses=_uses(source if transposed else node, kind),
    )


def _weight_at(
    module: fx.GraphModule, node: fx.Node
) -> tuple[str, nn.Parameter, Literal["conv", "linear"], bool] | None:
    """Name, weight, kind and whether transposed, of the convolution or linear call of a node."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        if not is_weighted(called):
            return None
        kind = "linear" if isinstance(called, nn.Linear) else "conv"
        weight = called.weight
        assert isinstance(weight, nn.Parameter)
        return str(node.target), weight, kind, bool(getattr(called, "transposed", False))
    if node.op != "call_function":
        return None
    operand = weight_operand(node)
    if operand is None or operand.op != "get_attr":
        return None
    weight = _attribute(module, str(operand.target))
    if not isinstance(weight, nn.Parameter):
        return None
    kind = "linear" if node.target is functional.linear else "conv"
    return str(operand.target), weight, kind, node.target in _TRANSPOSED


def not_prunable(module: fx.GraphModule) -> tuple[str, ...]:
    """Where a convolution or linear call computes its weight: a mask on a parameter would not do.

    Weight standardization is the common case: half a masked parameter leaves no zero behind it.
    """
    names = _first_names(module)
    return tuple(
        str(node.meta["scope"])
        for node in module.graph.nodes
        if weight_operand(node) is not None and layer_at(module, node, names) is None
    )


def weight_operand(node: fx.Node) -> fx.Node | None:
    """The node that a functional convolution or linear call takes its weight from, or None."""
    if node.target not in (*_CONVOLUTIONS, *_TRANSPOSED, functional.linear):
        return None
    operand = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return operand if isinstance(operand, fx.Node) else None


def _attribute(module: nn.Module, path: str) -> Any:
    prefix, _, name = path.rpartition(".")
    return getattr(module.get_submodule(prefix), name)


def _uses(node: fx.Node, kind: Literal["conv", "linear"]) -> int:
    """Places of a node's value for one example, wherever the batch is among its dimensions."""
    channels = 1 if kind == "conv" else -1
    places = [prod(spec.shape) // spec.shape[channels] for spec in node.meta["spec"]]
    first_input = next(iter(node.graph.nodes))
    batches = [spec.shape[0] for spec in first_input.meta["spec"]]
    grown = (places[1] - places[0]) // (batches[1] - batches[0])
    return grown or places[0]  # the same for every batch: it is used once, not per example


def _shape(node: fx.Node) -> tuple[int, ...]:
    """A node's activation shape without the batch: at the larger one, which nothing squeezes."""
    return tuple(node.meta["spec"][1].shape[1:])


def nodes_of(module: fx.GraphModule) -> Iterator[tuple[fx.Node, Layer]]:
    """Every call of every layer, in order of execution."""
    names = _first_names(module)
    for node in module.graph.nodes:
        layer = layer_at(module, node, names)
        if layer is not None:
            yield node, layer
