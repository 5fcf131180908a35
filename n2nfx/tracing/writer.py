"""One unified tape made an fx graph, with small modules for what depends on the mode."""

import operator
from collections.abc import Hashable, Sequence
from typing import Any

from torch import fx, nn

from n2nfx.tracing.tape import Built, Entry, Field, InputDevice, Ref, Tape
from n2nfx.tracing.unify import BatchNumber, SizeNumber, Switched

_Computed = InputDevice | BatchNumber | SizeNumber | Switched


class ModeSwitch(nn.Module):
    """Gives one constant in training and another in evaluation; it has no parameters."""

    def __init__(self, train: Any, eval: Any) -> None:
        super().__init__()
        self.in_train = train
        self.in_eval = eval

    def forward(self) -> Any:
        return self.in_train if self.training else self.in_eval

    def extra_repr(self) -> str:
        return f"train={self.in_train!r}, eval={self.in_eval!r}"


class GraphWriter:
    """Turns one unified tape into an fx graph, and collects the switches it needs."""

    def __init__(self, tape: Tape) -> None:
        self.graph = fx.Graph()
        self.switches: dict[str, ModeSwitch] = {}
        self._tape = tape
        self._scope = ""
        self._nodes: list[fx.Node] = []
        self._first: Any = None  # the node of the first input that is a tensor
        self._made: dict[Any, fx.Node] = {}

    def write(self) -> fx.Graph:
        """The graph; every node's meta holds `spec` (a pair of `Spec`) and `scope`.

        Where the graph follows its input's size, `grown` is a pair of those at other sizes.

        That of a module which is kept whole holds `inner`, `touched` and `parts` too: see `Seen`.
        Its switches are still to be put in: each into the module whose mode it looks at.
        """
        inputs = [entry for entry in self._tape.entries if entry.op == "placeholder"]
        for entry in inputs:
            self._nodes.append(self._node(entry))
        self._first = self._value(_first_tensor(inputs))
        for entry in self._tape.entries[len(inputs) :]:
            self._scope = entry.scope
            self._nodes.append(self._node(entry))
        return self.graph

    def _node(self, entry: Entry) -> fx.Node:
        args = tuple(self._argument(arg) for arg in entry.args)
        kwargs = {key: self._argument(value) for key, value in entry.kwargs.items()}
        if entry.op == "output":
            return self.graph.output(args[0])
        if entry.op == "placeholder":
            node = self.graph.placeholder(entry.target, None, *args)
        else:
            node = self.graph.create_node(entry.op, entry.target, args, kwargs)
        node.meta.update(spec=entry.value, scope=entry.scope)
        if entry.grown is not None:
            node.meta["grown"] = entry.grown
        if entry.seen is not None:
            seen = entry.seen
            node.meta.update(inner=seen.inner, touched=seen.taken, parts=seen.parts)
        return node

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self._value(value)
        if isinstance(value, InputDevice | BatchNumber | SizeNumber):
            return self._once(value, value)
        if isinstance(value, Switched):
            return self._once((self._scope, repr(value)), value)  # 1 is not True
        if isinstance(value, Built):
            arguments = self._argument(value.args), self._argument(value.kwargs)
            return self._plain(self.graph.call_function(value.type, *arguments))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._argument(item) for item in value))
        if isinstance(value, list | tuple):
            return (list if isinstance(value, list) else tuple)(map(self._argument, value))
        if isinstance(value, dict):
            return {key: self._argument(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(end) for end in (value.start, value.stop, value.step)))
        return value

    def _value(self, ref: Ref) -> fx.Node:
        """The node of an entry, or of an element of its value."""
        node = self._nodes[ref.index]
        for depth in range(len(ref.path)):
            key = Ref(ref.index, ref.path[: depth + 1])
            if key not in self._made:
                self._made[key] = self._element(node, ref.path[depth])
            node = self._made[key]
        return node

    def _element(self, node: fx.Node, key: int | str | Field) -> fx.Node:
        if isinstance(key, Field):
            made = self.graph.call_function(getattr, (node, key.name))
        else:
            made = self.graph.call_function(operator.getitem, (node, key))
        made.meta.update(spec=_item(node.meta["spec"], key), scope="")
        if "grown" in node.meta:
            made.meta["grown"] = _item(node.meta["grown"], key)
        return made

    def _plain(self, node: fx.Node) -> fx.Node:
        """A node whose value is no tensor."""
        node.meta.update(spec=None, scope="")
        return node

    def _once(
        self, key: Hashable, value: InputDevice | BatchNumber | SizeNumber | Switched
    ) -> fx.Node:
        """The node that computes a number, device or switch: made at its first use."""
        if key not in self._made:
            self._made[key] = self._plain(self._make(value))
        return self._made[key]

    def _make(self, value: _Computed) -> fx.Node:
        if isinstance(value, InputDevice):
            return self.graph.call_function(getattr, (self._first, "device"))
        if isinstance(value, Switched):
            name = f"{self._scope}.mode_switch_{len(self.switches)}".removeprefix(".")
            self.switches[name] = ModeSwitch(value.train, value.eval)
            return self.graph.call_module(name)
        if isinstance(value, SizeNumber):
            return self._size(value)
        if value.offset:
            base = self._batch_times(value.factor)
            return self.graph.call_function(operator.add, (base, value.offset))
        if value.factor != 1:
            base = self._batch_times(1)
            return self.graph.call_function(operator.mul, (base, value.factor))
        return self.graph.call_method("size", (self._first, 0))

    def _size(self, number: SizeNumber) -> fx.Node:
        *before, last = number.dimensions
        size = self.graph.call_method("size", (self._value(number.ref), last))
        if not before:
            return size
        rest = SizeNumber(number.ref, tuple(before))
        self._plain(size)
        return self.graph.call_function(operator.mul, (self._once(rest, rest), size))

    def _batch_times(self, factor: int) -> fx.Node:
        number = BatchNumber(factor, 0)
        return self._once(number, number)


def _first_tensor(inputs: Sequence[Entry]) -> Ref:
    """The first input that is a tensor, or has one in it."""
    for index, entry in enumerate(inputs):
        path = _path_to_tensor(entry.value)
        if path is not None:
            return Ref(index, path)
    raise AssertionError("no input is a tensor")


def _path_to_tensor(value: Any) -> tuple[Any, ...] | None:
    if isinstance(value, tuple):  # a pair of specs
        return ()
    keys = value if isinstance(value, dict) else range(len(value or ()))
    found = ((key, _path_to_tensor(value[key])) for key in keys)
    return next(((key, *path) for key, path in found if path is not None), None)


def _item(spec: Any, key: Any) -> Any:
    return spec[key] if isinstance(spec, list | dict) else None
