"""A network's channels and how they depend on each other: its graph walked once, rule by rule.

The walk is made for a batch of two, which no squeeze takes away.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg
from torch.nn import functional

from n2nfx.connectivity.constants import constant_at
from n2nfx.connectivity.moves import Unfollowed
from n2nfx.connectivity.relations import ChannelMap, Every, Pairs, Relation
from n2nfx.connectivity.rules import Call, Rule, in_place, live_values, rule_of
from n2nfx.connectivity.values import Loom, Value
from n2nfx.connectivity.weights import Use, Weights
from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import graphs_of, join, nodes_in
from n2nfx.intact import require_intact
from n2nfx.network import Network
from n2nfx.tracing.ops import first_tensor, is_in_place, is_view, kind_of, name_of
from n2nfx.tracing.tape import Spec

_BATCH = 2


def channel_map(network: Network) -> ChannelMap:
    """The channels of every value of a network, joined by the weights that its masks keep.

    The masks may be at work in the module or not. What a layer reads that depends on no input (a
    table, a learned query) counts as an input. Raises `CannotOperate` for a graph without shapes,
    and where a layer or a part was replaced.
    """
    require_intact(network)
    return follow_channels(network, graphs_of, Use.relation)[0]


def follow_channels(
    network: Network,
    graphs: Callable[[fx.GraphModule], Iterable[fx.Graph]],
    relation: Callable[[Use], Relation],
) -> tuple[ChannelMap, Mapping[fx.Node, Any]]:
    """The same for the graphs chosen of the network's module and of each part of it.

    `relation(use)` is that of every layer's link. Also what each node gives, as a `Value` or a
    structure of them.
    """
    walk = _Walk(network, graphs, relation)
    return walk.walk(), walk.values


class _Walk:
    """One walk over a graph: the value of every node, and what was made on the way."""

    def __init__(
        self,
        network: Network,
        graphs: Callable[[fx.GraphModule], Iterable[fx.Graph]],
        relation: Callable[[Use], Relation],
    ) -> None:
        self._module = network.module
        self._graphs = graphs
        self._relation = relation
        self._order = {node: place for place, (_, node) in enumerate(nodes_in(network.module))}
        self._weights = Weights(network)
        self._training = False
        self._loom = Loom()
        self.values: dict[fx.Node, Any] = {}
        self._roots: dict[fx.Node, fx.Node] = {}  # whose memory a node's value may share
        self._inputs: list[int] = []
        self._tables: set[int] = set()
        self._names: list[str] = []
        self._hubs: list[str] = []
        self._batches = (0, 0)
        self._given: Value | None = None  # what the inputs of a part are
        self._path = ""  # of the part

    def walk(self) -> ChannelMap:
        outputs = self._walk_all(self._module)
        return ChannelMap(
            sizes=tuple(self._loom.sizes),
            links=tuple(self._loom.links),
            inputs=tuple(self._inputs),
            outputs=tuple(value.number for value in outputs if value.number is not None),
            hubs=tuple(self._hubs),
            names=tuple(self._names),
            tables=frozenset(self._tables),
        )

    def _walk_all(self, module: fx.GraphModule) -> list[Value]:
        """Walk the graphs of the network's module, or of a part."""
        outputs: list[Value] = []
        for graph in self._graphs(module):
            for node in graph.nodes:
                _require_spec(node)
            small, large = _require_spec(first_tensor(graph))
            self._module, self._batches = module, (small.shape[0], large.shape[0])
            self._training = graph is not module.graph
            outputs += self._walk(graph)
        return outputs

    def _parts(self, call: Call, spec: Any) -> Any:
        """What a module that is kept whole gives: it depends on all it reads, and all its parts.

        Those in turn depend on all that it reads: what it does with it is not followed.
        """
        self._hubs.append(self._told(call.node))
        given = self._loom.hub((), call.values)
        self._name_values(call.node)
        before = self._module, self._batches, self._training, self._given, self._path
        outputs: list[Value] = []
        for path in call.node.meta["parts"]:
            self._given, self._path = given, join(before[-1], path)
            part: Any = before[0].get_submodule(path)
            outputs += self._walk_all(part)
        self._module, self._batches, self._training, self._given, self._path = before
        number = self._loom.hub((), [given, *outputs]).number
        return _each(spec, lambda pair: Value(number, self._shape(pair)))

    def _walk(self, graph: fx.Graph) -> list[Value]:
        """Give every node of a graph its value, and the outputs back."""
        for node in graph.nodes:
            if node.op == "output":
                return live_values(map_arg(node.args, self.values.__getitem__))
            self.values[node] = self._value(node)
            self._heed_memory(node)
            self._name_values(node)
        return []

    def _name_values(self, node: fx.Node) -> None:
        """Name the values that were made last by the node that made them."""
        self._names += [self._told(node)] * (len(self._loom.sizes) - len(self._names))

    def _value(self, node: fx.Node) -> Any:
        spec = _require_spec(node)
        if node.op == "placeholder":
            return self._placeholder(node, spec)
        if node.op == "get_attr":
            return self._constants(spec)
        call = self._call(node, spec)
        if node.meta.get("parts"):
            return self._parts(call, spec)
        if name_of(node) == "setitem":
            return self._set(call)
        if _is_element(call):
            return _element(call)
        if spec is None:
            return _plain(call, self._training)
        use = self._weights.use_at(call)
        if use is not None:
            return self._weighted(call, use)
        if not call.values:
            return self._constants(spec)
        return self._ruled(call, rule_of(self._module, call), spec)

    def _placeholder(self, node: fx.Node, spec: Any) -> Any:
        if spec is None:  # a constant that a part was called with, or what may be left out
            return node.meta["given"] if "given" in node.meta else node.args[0]
        if self._given is not None:
            number = self._given.number
            return _each(spec, lambda pair: Value(number, self._shape(pair)))
        has_channels = spec[0].dtype.is_floating_point
        axis = -1 if has_channels and self._is_read_by_linear(node) else 1
        return self._input(self._shape(spec), axis if has_channels else None)

    def _ruled(self, call: Call, rule: Rule | None, spec: Any) -> Any:
        """What a rule says of a call, or a hub where none can say anything."""
        try:
            value = rule(call) if rule is not None else None
        except Unfollowed:
            value = None
        return value if value is not None else self._hub(call, spec)

    def _call(self, node: fx.Node, spec: Any) -> Call:
        module = node.op == "call_module"
        return Call(
            loom=self._loom,
            node=node,
            module=self._module.get_submodule(str(node.target)) if module else None,
            args=map_arg(node.args, self.values.__getitem__),
            kwargs=map_arg(node.kwargs, self.values.__getitem__),
            shape=self._shape(spec) if _is_tensor(spec) else None,
            constant=lambda read: constant_at(self._module, read),
        )

    def _is_read_by_linear(self, node: fx.Node) -> bool:
        """Whether a linear layer reads an input first, whose channels are then its last axis."""
        for user in node.users:
            module = user.op == "call_module"
            called = self._module.get_submodule(str(user.target)) if module else user.target
            if isinstance(called, nn.Linear) or called is functional.linear:
                return True
            kind = kind_of(self._module, user)
            if kind in ("norm", "activation", "passing") and self._is_read_by_linear(user):
                return True
        return False

    def _input(self, shape: Sequence[int], axis: int | None) -> Value:
        """An input; indices into a table have no channels."""
        axes = () if axis is None or len(shape) < 2 else (axis % len(shape),)
        value = self._loom.make(shape, axes)
        self._inputs.append(len(self._loom.sizes) - 1)
        return value

    def _constants(self, spec: Any) -> Any:
        return _each(spec, lambda pair: Value(None, self._shape(pair)))

    def _hub(self, call: Call, spec: Any) -> Any:
        """All that an operation gives depends on all that it reads."""
        self._hubs.append(self._told(call.node))
        number = self._loom.hub((), call.values).number
        return _each(spec, lambda pair: Value(number, self._shape(pair)))

    def _weighted(self, call: Call, use: Use) -> Value:
        """What a convolution or linear layer gives: along one axis, by its kept weights."""
        assert call.shape is not None
        axis = len(call.shape) - 1 - use.places
        read = self._along(call, call.first, axis)
        made = self._loom.make(call.shape, (axis,))
        self._loom.link(made, read, self._relation(use))
        for other in call.values:
            if other != call.first:
                self._loom.link(made, other, Every())
        return made

    def _along(self, call: Call, value: Value, axis: int) -> Value:
        """A value's channels along one axis alone."""
        if value.number is None:
            value = self._input(value.shape, None)
            self._tables.add(self._inputs[-1])
        others = [other for other in value.axes if other != axis]
        if any(others) and axis not in value.axes and value.number not in self._inputs:
            self._hubs.append(self._told(call.node))
        alone = self._loom.reduced(value, others)
        if alone.axes or value.shape[axis] == 1:
            return alone
        spread = self._loom.make(value.shape, (axis,))
        size = value.shape[axis]
        self._loom.link(spread, alone, Pairs(np.arange(size), np.zeros(size, dtype=np.int64)))
        return spread

    def _set(self, call: Call) -> None:
        """Assigning to a part changes the tensor itself, for all who read it later."""
        target = call.node.args[0]
        assert isinstance(target, fx.Node)
        if call.values:
            self.values[target] = self._ruled(call, in_place, target.meta["spec"])

    def _heed_memory(self, node: fx.Node) -> None:
        """Where a value is changed in place by another, every view of it changes too.

        Which part of it is not followed: those who are read later depend on all of it then.
        """
        target = node.args[0] if node.args else None
        if not isinstance(target, fx.Node):
            self._roots[node] = node
            return
        changes = is_in_place(self._module, node)
        shares = changes or is_view(self._module, node)
        self._roots[node] = self._roots[target] if shares else node
        if not changes or all(read is target for read in node.all_input_nodes):
            return
        changed = self.values[target if self.values[node] is None else node]
        for other, root in self._roots.items():
            shared = root is self._roots[node] and other not in (node, target)
            if shared and self._is_read_after(other, node):
                self.values[other] = self._mixed(node, self.values[other], changed)

    def _is_read_after(self, other: fx.Node, node: fx.Node) -> bool:
        return any(self._order[user] > self._order[node] for user in other.users)

    def _mixed(self, node: fx.Node, old: Any, changed: Value) -> Any:
        if not live_values([changed]):
            return old
        self._hubs.append(self._told(node))
        number = self._loom.hub((), live_values([old, changed])).number
        return _each_value(old, lambda value: Value(number, value.shape))

    def _told(self, node: fx.Node) -> str:
        """An operation as a person finds it."""
        if node.op == "call_module":
            return join(self._path, str(node.target))
        scope = join(self._path, node.meta.get("scope") or "")
        return f"{name_of(node)} in {scope}" if scope else name_of(node)

    def _shape(self, spec: tuple[Spec, Spec]) -> tuple[int, ...]:
        """A tensor's shape for the batch of the walk, by those at two others."""
        (small, large), (few, many) = spec, self._batches
        if few == many:  # the shapes for one batch are all there is
            return large.shape
        if len(small.shape) != len(large.shape):  # a batch of one was squeezed away
            return tuple(_BATCH if size == many else size for size in large.shape)
        both = zip(small.shape, large.shape, strict=True)
        return tuple(low + (high - low) * (_BATCH - few) // (many - few) for low, high in both)


def _require_spec(node: fx.Node) -> Any:
    if "spec" not in node.meta and node.op != "output":
        raise CannotOperate(
            f"the graph does not say what {node.name} gives; trace the module: "
            "n2nfx.trace(module, example)"
        )
    return node.meta.get("spec")


def _is_tensor(spec: Any) -> bool:
    return isinstance(spec, tuple)


def _each(spec: Any, value: Any) -> Any:
    """What a call gives, with `value(spec)` for each of its tensors."""
    if _is_tensor(spec):
        return value(spec)
    if isinstance(spec, dict):
        return {key: _each(item, value) for key, item in spec.items()}
    return [_each(item, value) for item in spec] if isinstance(spec, list) else None


def _each_value(values: Any, change: Callable[[Value], Value]) -> Any:
    def visit(item: Any) -> Any:
        return change(item) if isinstance(item, Value) else item

    return map_aggregate(values, visit)


def _is_element(call: Call) -> bool:
    """Whether a call takes one of several things that another gave."""
    name = name_of(call.node)
    held = call.args[0] if call.args else None
    return name in ("getitem", "getattr", "of_kind") and isinstance(held, list | tuple | dict)


def _element(call: Call) -> Any:
    if name_of(call.node) == "of_kind":  # all of them, checked
        return call.args[0]
    held, key = call.args
    if not isinstance(held, dict):
        return held[key]
    return {getattr(own, "name", own): item for own, item in held.items()}[key]


def _plain(call: Call, training: bool) -> Any:
    """A number, device or switch, computed as the network computes it; or a case for values."""
    if call.module is not None:  # a switch
        return vars(call.module).get("in_train" if training else "in_eval")
    if call.node.op == "call_method":
        return call.args[0].shape[call.args[1]] if call.node.target == "size" else None
    if call.node.target is getattr:
        return torch.device("cpu")
    if call.values:  # put into something else, to be given back
        return call.values
    assert callable(call.node.target)
    return call.node.target(*call.args, **call.kwargs)
