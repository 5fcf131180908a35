"""A `torch.fx.GraphModule` that keeps the whole module tree, used by its graph or not.

`GraphModule` itself copies only what its graph names: an auxiliary head that one mode does not
run would vanish from the state dict, and `layer1` would no longer be a `Sequential`. It copies
and pickles itself the same way, and reads a pickled graph back by running its code on proxies,
which fails at the first `torch.zeros(batch)`. Here the graph itself is pickled, node by node.

Where a model does something else in training, it has a second graph for that, and `forward`
follows `training`.

A module that cannot be a graph is called whole, and the largest modules inside that can are graph
modules themselves, in their places: the parts.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from types import MethodType
from typing import Any

from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg

from n2nfx.errors import CannotOperate
from n2nfx.masked import missing_masks

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

WHOLE_MODEL = "whole_model"  # the name by which a graph calls the model as it is

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # the tables, the hooks and the training flag
# What tracing writes down about a node.
_META = ("spec", "grown", "scope", "given", "inner", "touched", "parts")


class WholeModel(nn.Module):
    """The model that a graph module was made of, of its own class, for what no graph can do.

    It calls the forward that the model had before tracing. A graph module has one as an attribute,
    not as a part: all of the model's parts are its own, under their names, and `share` makes the
    two have the same.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        bare = copy.copy(model)
        for hooks in HOOKS:  # those of the model itself are called by the graph module
            vars(bare)[hooks] = type(vars(bare)[hooks])()
        for hooks in (getattr(module, table) for module in model.modules() for table in HOOKS):
            for key, hook in hooks.items():
                hooks[key] = _rebound(hook, model, bare)
        self._held = (bare,)

    def share(self, host: nn.Module) -> None:
        """Let the model have the parameters, buffers and modules of the host, now and later."""
        for table in ("_parameters", "_buffers", "_modules"):
            vars(self._held[0])[table] = vars(host)[table]

    def ask(self, name: str) -> Any:
        """An attribute that the model gets from its class. Raises `AttributeError`."""
        return getattr(self._held[0], name)

    def train(self, mode: bool = True) -> "WholeModel":
        """Set the mode as the model's class does, which may let parts of it stay in evaluation."""
        self._held[0].train(mode)
        return super().train(mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._held[0].forward(*args, **kwargs)


def _rebound(hook: Any, model: nn.Module, bare: nn.Module) -> Any:
    """A hook that is a method of the model, as one of what runs in its place."""
    match hook:
        case MethodType() if hook.__self__ is model:
            return MethodType(hook.__func__, bare)
        case partial():
            return partial(_rebound(hook.func, model, bare), *hook.args, **hook.keywords)
    return hook


class WholeGraphModule(fx.GraphModule):
    """A GraphModule with every submodule, parameter, buffer, hook and attribute of its root.

    `graph` is what it does; `training_graph`, if there is one, what it does in training instead.
    `whole_model` is there where the graph calls it, where the root's class has its own `train`,
    and in a part: what calls that may ask it for a method of its class.
    """

    training_graph: fx.Graph | None = None
    whole_model: WholeModel | None = None

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        class_name: str = "GraphModule",
        training_graph: fx.Graph | None = None,
    ) -> None:
        super().__init__(root, graph, class_name)
        self._take_over(root)
        training_graph = training_graph or vars(root).get("training_graph")
        if training_graph is not None:
            training_graph.owning_module = self
            self.training_graph = training_graph
            self.recompile()

    def _take_over(self, root: nn.Module) -> None:
        """Have whatever the root has."""
        for name, value in vars(root).items():
            if name in _OF_EVERY_MODULE:
                self.__dict__[name] = copy.copy(value)
            elif name not in vars(self) and not hasattr(type(self), name):
                self.__dict__[name] = value
        hooks: dict[int, Any] = self._load_state_dict_pre_hooks
        for key, hook in hooks.items():
            if hook.with_module:  # it remembers whose it is, by a weak reference
                hooks[key] = type(hook)(hook.hook, self)
        for parameter in self.parameters():
            if not parameter.is_leaf:  # a copy of TorchScript has clones that point back at it
                parameter.detach_().requires_grad_()
        whole_model = vars(root).get("whole_model")
        if whole_model is None and type(root).train not in (nn.Module.train, type(self).train):
            whole_model = WholeModel(root)
        if whole_model is not None:
            whole_model.share(self)
            vars(self)["whole_model"] = whole_model

    def __getattr__(self, name: str) -> Any:
        """What the module itself has not, its model may: a method, a property."""
        whole_model = vars(self).get("whole_model")
        if whole_model is None:
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return whole_model.ask(name)

    def get_submodule(self, target: str) -> nn.Module:
        """The module of that path, as ever, by the tables of modules: several times as quick."""
        found: Any = self
        for name in target.split("."):
            table = found._modules
            found = table.get(name) if isinstance(table, dict) else None
            if found is None:
                return super().get_submodule(target)
        return found

    def train(self, mode: bool = True) -> "WholeGraphModule":
        """Set the mode of every part, as the root's class does."""
        super().train(mode)
        if self.whole_model is not None:
            self.whole_model.train(mode)
        return self

    def recompile(self) -> Any:
        """Make `forward` anew after a graph was edited."""
        code = super().recompile()
        if self.training_graph is not None:
            cls = type(self)
            cls.forward = _by_mode(cls.forward, _compiled(self.training_graph))  # type: ignore[method-assign]
        return code

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As ever, but masks of which the state has only some are missing: none stays unnoticed."""
        told = missing_masks(self, state_dict, prefix)
        missing_keys += [name for name in told if name not in missing_keys]
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __copy__(self) -> "WholeGraphModule":
        graphs = [copy.deepcopy(graph) for graph in graphs_of(self)]
        return WholeGraphModule(self, graphs[0], type(self).__name__, *graphs[1:])

    def _deepcopy_init(self) -> Any:
        return partial(type(self).__init__, class_name=type(self).__name__)

    def __reduce__(self) -> tuple[Any, ...]:
        kept = vars(self).keys() - {"_graph", "training_graph", "_compiled_call_impl"}
        body = {name: value for name, value in vars(self).items() if name in kept}
        return _blank, (), (body, [_rows(graph) for graph in graphs_of(self)], type(self).__name__)

    def __setstate__(self, state: tuple[dict[str, Any], list[list["_Row"]], str]) -> None:
        body, rows, class_name = state
        graph, *training = map(_graph, rows)
        WholeGraphModule.__init__(self, _Root(body), graph, class_name, *training)


def graphs_of(module: fx.GraphModule) -> tuple[fx.Graph, ...]:
    """The module's graph, and the one for training where that is another."""
    training = getattr(module, "training_graph", None)
    return (module.graph,) if training is None else (module.graph, training)


def parts_of(module: fx.GraphModule, at: str = "") -> Iterator[tuple[str, fx.GraphModule]]:
    """The module, its path empty, and every part inside of it, before those inside of that.

    `at` is the module's path, if it is in another. Raises `CannotOperate` where a part was replaced
    by what has no graph.
    """
    yield at, module
    for path in dict.fromkeys(path for graph in graphs_of(module) for path in parts_in(graph)):
        yield from parts_of(_part(module, path, at), join(at, path))


def _part(module: fx.GraphModule, path: str, at: str) -> fx.GraphModule:
    try:
        part = module.get_submodule(path)
    except AttributeError:
        now = missing(module, path, at)
    else:
        if isinstance(part, fx.GraphModule):
            return part
        now = f"is {type(part).__name__} now"
    raise CannotOperate(f"{join(at, path)} was a part with a graph of its own, and {now}{REPLACED}")


# What to do about it, as the end of an error.
REPLACED = "; replace modules before tracing, and trace again"


def missing(module: nn.Module, path: str, at: str = "") -> str:
    """What is not there on the way to a module or parameter: `head (Identity) has no conv`.

    The last name is taken to be missing where all before are there.
    """
    *way, last = path.split(".")
    for name in way:
        child = module._modules.get(name)
        if child is None:
            last = name
            break
        at, module = join(at, name), child
    return f"{at or 'the model'} ({type(module).__name__}) has no {last}"


def parts_in(graph: fx.Graph) -> Iterator[str]:
    """The paths of the parts inside of what a graph calls, without those inside of these."""
    for node in graph.nodes:
        yield from node.meta.get("parts", ())


def judged_parts(module: fx.GraphModule) -> list[tuple[str, fx.GraphModule]]:
    """The module and its parts; without it if it is one call of the whole model, and has parts.

    What they give depends on their inputs alone, and what such a model gives can depend on data:
    how many boxes there are.
    """
    found = list(parts_of(module))
    return found[1:] if is_whole(module) and len(found) > 1 else found


def is_whole(module: fx.GraphModule) -> bool:
    """Whether the graph is one call of the whole model, which is Python around its parts."""
    return any(node.target == WHOLE_MODEL for node in module.graph.nodes)


def nodes_in(module: fx.GraphModule) -> Iterator[tuple[fx.GraphModule, fx.Node]]:
    """Every node of every graph of a module and its parts, with the one of these that it is in."""
    for _, part in list(parts_of(module)):
        for graph in graphs_of(part):
            for node in list(graph.nodes):
                yield part, node


def recompile(module: fx.GraphModule) -> None:
    """Make `forward` anew in a module and its parts, after graphs were edited."""
    for _, part in parts_of(module):
        part.recompile()


def join(path: str, name: str) -> str:
    """The name, from outside, of what a part at a path calls `name`; empty names are the part."""
    return f"{path}.{name}" if path and name else path or name


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    """A graph's forward."""
    code = graph.python_code(root_module="self")
    names: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<the graph for training>", "exec"), names)
    return names["forward"]


def _by_mode(evaluation: Callable[..., Any], training: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(evaluation)  # its signature is the module's
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (training if self.training else evaluation)(self, *args, **kwargs)

    return forward


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


@dataclass(frozen=True)
class _Named:
    """A function by its module and its name there."""

    module: str
    name: str


_Row = tuple[str, str, Any, Any, Any, dict[str, Any]]


def _rows(graph: fx.Graph) -> list[_Row]:
    """A graph as plain data: nodes themselves form a linked list, too deep to be pickled."""
    places: dict[fx.Node, Any] = {node: _At(index) for index, node in enumerate(graph.nodes)}
    return [
        (
            node.name,
            node.op,
            _named(node.target),
            map_arg(node.args, places.__getitem__),
            map_arg(node.kwargs, places.__getitem__),
            {key: node.meta[key] for key in _META if key in node.meta},
        )
        for node in graph.nodes
    ]


def _named(target: Any) -> Any:
    """A target as it can be pickled: `max_pool2d` and the like are functions inside a function."""
    if "<locals>" not in getattr(target, "__qualname__", ""):
        return target
    name = _Named(target.__module__, target.__name__)
    return name if getattr(import_module(name.module), name.name, None) is target else target


def _graph(rows: list[_Row]) -> fx.Graph:
    """The graph again, with the same names."""
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def read(value: Any) -> Any:
        return nodes[value.index] if isinstance(value, _At) else value

    for name, op, target, args, kwargs, meta in rows:
        arguments = map_aggregate(args, read), map_aggregate(kwargs, read)
        if isinstance(target, _Named):
            target = getattr(import_module(target.module), target.name)
        node = graph.create_node(op, target, *arguments, name=name)  # type: ignore[arg-type]
        node.meta.update(meta)
        nodes.append(node)
    return graph
