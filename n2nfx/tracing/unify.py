"""Several runs of one forward, made one graph: generic in the batch, right in train and eval.

The same forward is recorded in both modes at two batch sizes. The tapes must agree step by step.
Where a number differs with the batch it becomes `a * batch + c`; where a value differs with the
mode it becomes a switch that looks at `training`. No symbolic shapes are needed.
"""

import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from n2nfx.errors import CannotOperate
from n2nfx.tracing.tape import Entry, InputDevice, Ref, Spec, Tape


@dataclass(frozen=True)
class Run:
    """How a tape was recorded."""

    training: bool
    batch: int


@dataclass(frozen=True)
class BatchNumber:
    """A number that depends on the batch: `factor * batch + offset`."""

    factor: int
    offset: int


@dataclass(frozen=True)
class Switched:
    """A value that depends on the mode."""

    train: Any
    eval: Any


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


class Disagreement(Exception):
    """Two tapes differ in a way that no number or switch can bridge."""


def unify(tapes: Mapping[Run, Tape]) -> Tape:
    """One tape in which `BatchNumber` and `Switched` stand where the runs differ.

    Each tensor among the values has a pair of `Spec`: those of the first two evaluated runs.
    Raises `CannotOperate` when the runs differ in structure, naming the modules where they part.
    """
    runs = list(tapes)
    one = Tape()
    # No tape ends before the others without a disagreement: the last entry of each is its output.
    for entries in zip(*(tape.entries for tape in tapes.values()), strict=False):
        try:
            one.write(_unify_entries(runs, entries))
        except Disagreement as error:
            raise CannotOperate(_parting(dict(zip(runs, entries, strict=True)))) from error
    return one


def _parting(entries: Mapping[Run, Entry]) -> str:
    """Where the runs part, and whether the batch or the mode parts them."""
    modes = [[run for run in entries if run.training is training] for training in (False, True)]
    alone = [_meet({run: entries[run] for run in mode}) for mode in modes if mode]
    cause = "the mode (train or eval)" if all(alone) else "the batch size"
    steps = list(dict.fromkeys(_step(entry) for entry in entries.values()))
    how = f"{steps[0]} gets other arguments" if len(steps) == 1 else f"next is {' or '.join(steps)}"
    return f"what forward does depends on {cause}, and not by a whole number alone: {how}"


def _meet(entries: Mapping[Run, Entry]) -> bool:
    try:
        _unify_calls(list(entries), list(entries.values()))
    except Disagreement:
        return False
    return True


def _step(entry: Entry) -> str:
    name = getattr(entry.target, "__name__", str(entry.target))
    return f"{name} ({f'in {entry.scope}' if entry.scope else 'at the top of forward'})"


def _unify_entries(runs: Sequence[Run], entries: Sequence[Entry]) -> Entry:
    first = entries[0]
    args, kwargs = _unify_calls(runs, entries)
    value = _pair_specs(runs, [entry.value for entry in entries])
    return Entry(first.op, first.target, args, kwargs, value, first.scope)


def _unify_calls(
    runs: Sequence[Run], entries: Sequence[Entry]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first = entries[0]
    if any((entry.op, entry.target) != (first.op, first.target) for entry in entries):
        raise Disagreement
    args = _unify(runs, [entry.args for entry in entries])
    return args, _unify(runs, [entry.kwargs for entry in entries])


def _unify(runs: Sequence[Run], values: Sequence[Any]) -> Any:
    """One value for the values of all runs."""
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        return _bridge(runs, values)
    if isinstance(first, list | tuple):
        if any(len(value) != len(first) for value in values):
            raise Disagreement
        items = [_unify(runs, column) for column in zip(*values, strict=True)]
        if hasattr(first, "_fields"):
            return type(first)(*items)
        return items if isinstance(first, list) else tuple(items)
    if isinstance(first, dict):
        if any(value.keys() != first.keys() for value in values):
            raise Disagreement
        return {key: _unify(runs, [value[key] for value in values]) for key in first}
    if isinstance(first, slice):
        ends = [(value.start, value.stop, value.step) for value in values]
        return slice(*_unify(runs, ends))
    if all(_same(value, first) for value in values):
        return first
    return _bridge(runs, values)


def _same(value: Any, other: Any) -> bool:
    return value == other or (value != value and other != other)  # NaN is the same as NaN


def _bridge(runs: Sequence[Run], values: Sequence[Any]) -> Any:
    """A number of the batch, a switch of the mode, or a disagreement."""
    if not all(map(_is_constant, values)):
        raise Disagreement
    by_batch = _by({run.batch: [] for run in runs}, [run.batch for run in runs], values)
    by_mode = _by({run.training: [] for run in runs}, [run.training for run in runs], values)
    if all(type(value) is int for value in values) and _agree(by_batch):
        number = _line_through({batch: got[0] for batch, got in by_batch.items()})
        if number is not None:
            return number
    if _agree(by_mode) and len(by_mode) == 2:
        return Switched(train=by_mode[True][0], eval=by_mode[False][0])
    raise Disagreement


def _is_constant(value: Any) -> bool:
    """Whether a value is the same whatever the network is called with."""
    if isinstance(value, list | tuple):
        return all(map(_is_constant, value))
    if isinstance(value, dict):
        return all(map(_is_constant, value.values()))
    if isinstance(value, slice):
        return all(map(_is_constant, (value.start, value.stop, value.step)))
    return not isinstance(value, Ref | InputDevice)


def _line_through(points: Mapping[int, int]) -> BatchNumber | None:
    """The one `factor * batch + offset` that gives the number at every batch, or None."""
    (small, low), (large, high) = list(points.items())[:2]
    factor = (high - low) // (large - small)
    number = BatchNumber(factor, low - factor * small)
    fits = all(factor * batch + number.offset == value for batch, value in points.items())
    return number if fits else None


def _by(groups: dict[Any, list[Any]], keys: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    for key, value in zip(keys, values, strict=True):
        groups[key].append(value)
    return groups


def _agree(groups: Mapping[Any, Sequence[Any]]) -> bool:
    return all(_same(value, group[0]) for group in groups.values() for value in group)


def _pair_specs(runs: Sequence[Run], values: Sequence[Any]) -> Any:
    """The specs of the first two evaluated runs as a pair for each tensor."""
    small, large = [value for run, value in zip(runs, values, strict=True) if not run.training][:2]
    return _pair(small, large)


def _pair(small: Any, large: Any) -> Any:
    if isinstance(small, Spec):
        return (small, large)
    if isinstance(small, dict):
        return {key: _pair(small[key], large[key]) for key in small}
    if isinstance(small, list):
        # An element that only one batch has is never used: its users would have parted.
        return [_pair(*both) for both in zip(small, large, strict=False)]
    return None


class GraphWriter:
    """Turns one unified tape into an fx graph, and collects the switches it needs."""

    def __init__(self, tape: Tape) -> None:
        self.graph = fx.Graph()
        self.switches: dict[str, ModeSwitch] = {}
        self._tape = tape
        self._scope = ""
        self._nodes: list[fx.Node] = []
        self._made: dict[Any, fx.Node] = {}

    def write(self) -> fx.Graph:
        """The graph; every node's meta holds `spec` (a pair of `Spec`) and `scope`.

        Its switches are still to be put in: each into the module whose mode it looks at.
        """
        for entry in self._tape.entries:
            self._scope = entry.scope
            self._nodes.append(self._node(entry))
        return self.graph

    def _node(self, entry: Entry) -> fx.Node:
        args = tuple(self._argument(arg) for arg in entry.args)
        kwargs = {key: self._argument(value) for key, value in entry.kwargs.items()}
        if entry.op == "output":
            return self.graph.output(args[0])
        if entry.op == "placeholder":
            node = self.graph.placeholder(entry.target)
        else:
            node = self.graph.create_node(entry.op, entry.target, args, kwargs)
        node.meta.update(spec=entry.value, scope=entry.scope)
        return node

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self._value(value)
        if isinstance(value, InputDevice | BatchNumber):
            return self._once(value, value)
        if isinstance(value, Switched):
            return self._once((self._scope, repr(value)), value)  # 1 is not True
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
                made = self.graph.call_function(operator.getitem, (node, ref.path[depth]))
                made.meta.update(spec=_item(node.meta["spec"], ref.path[depth]), scope="")
                self._made[key] = made
            node = self._made[key]
        return node

    def _once(self, key: Hashable, value: InputDevice | BatchNumber | Switched) -> fx.Node:
        """The node that computes a number, device or switch: made at its first use."""
        if key not in self._made:
            node = self._make(value)
            node.meta.update(spec=None, scope="")
            self._made[key] = node
        return self._made[key]

    def _make(self, value: InputDevice | BatchNumber | Switched) -> fx.Node:
        if isinstance(value, InputDevice):
            return self.graph.call_function(getattr, (self._nodes[0], "device"))
        if isinstance(value, Switched):
            name = f"{self._scope}.mode_switch_{len(self.switches)}".removeprefix(".")
            self.switches[name] = ModeSwitch(value.train, value.eval)
            return self.graph.call_module(name)
        if value.offset:
            base = self._batch_times(value.factor)
            return self.graph.call_function(operator.add, (base, value.offset))
        if value.factor != 1:
            base = self._batch_times(1)
            return self.graph.call_function(operator.mul, (base, value.factor))
        return self.graph.call_method("size", (self._nodes[0], 0))

    def _batch_times(self, factor: int) -> fx.Node:
        number = BatchNumber(factor, 0)
        return self._once(number, number)


def _item(spec: Any, key: Any) -> Any:
    return spec[key] if isinstance(spec, list | dict) else None
