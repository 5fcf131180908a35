"""What a node gives that depends on parameters alone, computed as the network computes it."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg


class _Depends(Exception):
    """A node that depends on the network's input."""


def constant_at(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The tensor that a node gives, or None where it depends on the network's input."""
    with torch.no_grad():
        try:
            return _value(module, node, {}).detach()
        except _Depends:
            return None


def attribute(module: nn.Module, path: str) -> Any:
    """A parameter, buffer or other attribute by its path."""
    prefix, _, name = path.rpartition(".")
    return getattr(module.get_submodule(prefix), name)


def _value(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node not in known:
        known[node] = _computed(module, node, known)
    return known[node]


def _computed(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return attribute(module, str(node.target))
    if node.target is getattr and node.args[1] == "dtype":
        held = node.args[0]
        assert isinstance(held, fx.Node)
        return held.meta["spec"][1].dtype  # also of what depends on the input
    if node.op == "placeholder":
        raise _Depends
    args, kwargs = map_arg((node.args, node.kwargs), lambda read: _value(module, read, known))
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
