"""What a node gives that depends on parameters alone, computed as the network computes it."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg


def constant_at(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The tensor that a node gives, or None where it depends on the network's input."""
    needed = _needed(node)
    if any(one.op == "placeholder" for one in needed):
        return None
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for one in node.graph.nodes:
            if one in needed:
                known[one] = _computed(module, one, known)
    return known[node].detach()


def attribute(module: nn.Module, path: str) -> Any:
    """A parameter, buffer or other attribute by its path."""
    prefix, _, name = path.rpartition(".")
    return getattr(module.get_submodule(prefix), name)


def _needed(node: fx.Node) -> set[fx.Node]:
    """A node and all that its value is made of."""
    needed, left = {node}, [node]
    while left:
        read = [] if _is_dtype(one := left.pop()) else one.all_input_nodes
        left += [other for other in read if other not in needed]
        needed.update(read)
    return needed


def _is_dtype(node: fx.Node) -> bool:
    """Whether a node asks for a dtype, which is known also of what depends on the input."""
    return node.target is getattr and str(node.args[1]) == "dtype"


def _computed(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return attribute(module, str(node.target))
    if _is_dtype(node):
        held = node.args[0]
        assert isinstance(held, fx.Node)
        return held.meta["spec"][1].dtype
    args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
