"""A `torch.fx.GraphModule` that keeps the whole module tree, used by its graph or not.

`GraphModule` itself copies only what its graph names: an auxiliary head that one mode does not
run would vanish from the state dict, and `layer1` would no longer be a `Sequential`. It copies
and pickles itself the same way, and reads a pickled graph back by running its code on proxies,
which fails at the first `torch.zeros(batch)`. Here the graph itself is pickled, node by node.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # the tables, the hooks and the training flag
_META = ("spec", "scope")  # what tracing writes down about a node


class WholeGraphModule(fx.GraphModule):
    """A GraphModule with every submodule, parameter, buffer, hook and attribute of its root."""

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "GraphModule") -> None:
        super().__init__(root, graph, class_name)
        for name, value in vars(root).items():
            if name in _OF_EVERY_MODULE:
                self.__dict__[name] = copy.copy(value)
            elif name not in vars(self) and not hasattr(type(self), name):
                self.__dict__[name] = value
        hooks: dict[int, Any] = self._load_state_dict_pre_hooks
        for key, hook in hooks.items():
            if hook.with_module:  # it remembers whose it is, by a weak reference
                hooks[key] = type(hook)(hook.hook, self)

    def __copy__(self) -> "WholeGraphModule":
        return WholeGraphModule(self, copy.deepcopy(self.graph), type(self).__name__)

    def _deepcopy_init(self) -> Any:
        return partial(type(self).__init__, class_name=type(self).__name__)

    def __reduce__(self) -> tuple[Any, ...]:
        body = {name: value for name, value in vars(self).items() if name != "_graph"}
        return _blank, (), (body, _rows(self.graph), type(self).__name__)

    def __setstate__(self, state: tuple[dict[str, Any], list["_Row"], str]) -> None:
        body, rows, class_name = state
        WholeGraphModule.__init__(self, _Root(body), _graph(rows), class_name)


def _blank() -> WholeGraphModule:
    return WholeGraphModule.__new__(WholeGraphModule)


class _Root(nn.Module):
    """A bare module with another's `__dict__`: the tree that a pickled GraphModule brought."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__()
        self.__dict__.update(body)


@dataclass(frozen=True)
class _At:
    """A node among the arguments of another, by its place in the graph."""

    index: int


_Row = tuple[str, str, Any, Any, Any, dict[str, Any]]


def _rows(graph: fx.Graph) -> list[_Row]:
    """A graph as plain data: nodes themselves form a linked list, too deep to be pickled."""
    places: dict[fx.Node, Any] = {node: _At(index) for index, node in enumerate(graph.nodes)}
    return [
        (
            node.name,
            node.op,
            node.target,
            map_arg(node.args, places.__getitem__),
            map_arg(node.kwargs, places.__getitem__),
            {key: node.meta[key] for key in _META if key in node.meta},
        )
        for node in graph.nodes
    ]


def _graph(rows: list[_Row]) -> fx.Graph:
    """The graph again, with the same names."""
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def read(value: Any) -> Any:
        return nodes[value.index] if isinstance(value, _At) else value

    for name, op, target, args, kwargs, meta in rows:
        arguments = map_aggregate(args, read), map_aggregate(kwargs, read)
        node = graph.create_node(op, target, *arguments, name=name)  # type: ignore[arg-type]
        node.meta.update(meta)
        nodes.append(node)
    return graph
