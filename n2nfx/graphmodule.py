"""A `torch.fx.GraphModule` that keeps the whole module tree, used by its graph or not.

`GraphModule` itself copies only what its graph names: an auxiliary head that one mode does not
run would vanish from the state dict, and `layer1` would no longer be a `Sequential`. deepcopy and
pickle rebuild a GraphModule from its graph, so they are taught the same.
"""

from typing import Any

from torch import fx, nn


class WholeGraphModule(fx.GraphModule):
    """A GraphModule with every submodule, parameter, buffer and attribute of its root."""

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "GraphModule") -> None:
        super().__init__(root, graph, class_name)
        self._adopt(root)

    def _adopt(self, root: nn.Module) -> None:
        for table in ("_parameters", "_buffers", "_modules"):
            setattr(self, table, getattr(root, table).copy())
        self._non_persistent_buffers_set = set(root._non_persistent_buffers_set)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", *_HOOK_OPTIONS):
            setattr(self, hooks, getattr(root, hooks).copy())
        for name, value in vars(root).items():
            if name not in vars(self) and not hasattr(type(self), name):
                self.__dict__[name] = value

    def _deepcopy_init(self) -> Any:
        return type(self).__init__

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments = super().__reduce__()[:2]
        return _restore, (rebuild, arguments)


_HOOK_OPTIONS = (
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


class _Root(nn.Module):
    """A bare module with another's `__dict__`: the tree that a pickled GraphModule brought."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__()
        self.__dict__.update(body)


def _restore(rebuild: Any, arguments: tuple[Any, ...]) -> WholeGraphModule:
    plain = rebuild(*arguments)
    body = arguments[0]
    return WholeGraphModule(_Root(body), plain.graph, body.get("_graphmodule_cls_name", "Graph"))
