"""The dimensions of a graph's values, followed from where a map is made, operation by operation.

What is not known is not guessed: a value whose dimensions cannot be followed has none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import torch
from torch import fx, nn

from n2nfx.dimensions import (
    Dimension,
    Dimensions,
    Part,
    Shape,
    coarser,
    cropped,
    grid,
    is_whole,
    length_of,
    lengthened,
    line_of,
    lines_of,
    once,
    other,
    reshaped,
    resized,
    whole,
)
from n2nfx.tracing.ops import name_of
from n2nfx.tracing.tape import Spec


class Followed:
    """The dimensions of every value of a graph, None where they cannot be followed.

    They are those at the larger of the two batches that the graph was traced at; `last` says
    whether its input has the channels last. Several tensors that are parts of one are known by its
    dimensions, until one of them is taken.
    """

    def __init__(self, module: fx.GraphModule, graph: fx.Graph, last: bool) -> None:
        self._module = module
        self._last = last
        self._known: dict[fx.Node, Dimensions | None] = {}
        for node in graph.nodes:
            shape, found = _shape(node), self._find(node)
            fits = found is None or shape is None or tuple(map(length_of, found)) == shape
            self._known[node] = found if fits else None

    def of(self, node: fx.Node) -> Dimensions | None:
        """The dimensions of a node's value."""
        return self._known[node]

    def _find(self, node: fx.Node) -> Dimensions | None:
        shape = _shape(node)
        if node.op == "placeholder":
            return _input(shape, self._last) if shape and len(shape) > 1 else None
        name = self._name(node)
        reads = tuple(self._known[read] for read in node.all_input_nodes)
        if name in _SHUFFLES or not any(reads):
            return None
        if name in _RULES:
            return _RULES[name](_Call(node, reads, shape or ()))
        return _alike([made for made in reads if made], shape)

    def _name(self, node: fx.Node) -> str:
        """What a node does, by name; a layer is called as its function is."""
        if node.op != "call_module":
            return name_of(node)
        called = self._module.get_submodule(str(node.target))
        if isinstance(called, nn.modules.conv._ConvNd):
            return "conv2d"
        if isinstance(called, nn.Unfold) and _lie_side_by_side(called):
            return "squares"
        return "linear" if isinstance(called, nn.Linear) else type(called).__name__.lower()


@dataclass(frozen=True, eq=False)
class _Call:
    """A node, the dimensions of what it reads, and the shape of what it makes."""

    node: fx.Node
    reads: tuple[Dimensions | None, ...]
    shape: Shape

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by place or by name."""
        arguments = self.node.args
        return arguments[index] if len(arguments) > index else self.node.kwargs.get(name, default)


def _shape(node: fx.Node) -> Shape | None:
    """The shape of a node's value at the larger batch, None where that is not one tensor."""
    spec = node.meta.get("spec")
    one_tensor = isinstance(spec, tuple) and all(isinstance(one, Spec) for one in spec)
    return spec[1].shape if one_tensor else None  # type: ignore[index]


def _lie_side_by_side(unfold: nn.Unfold) -> bool:
    """Whether what is cut out are squares, and each place is in one of them."""
    given = (unfold.kernel_size, unfold.stride, unfold.padding, unfold.dilation)
    (size, *others), *rest = (one if isinstance(one, tuple) else (one, one) for one in given)
    return others == [size] and rest == [(size, size), (0, 0), (1, 1)]


def _input(shape: Shape, last: bool) -> Dimensions:
    examples, *rest = shape
    channels, places = (rest[-1], rest[:-1]) if last else (rest[0], rest[1:])
    inside = (*grid(places), other(channels)) if last else (other(channels), *grid(places))
    return (Part("batch", examples),), *inside


def _alike(reads: list[Dimensions], shape: Shape | None) -> Dimensions | None:
    """Of operations place by place, and of those that make grids of another size."""
    ranked = [made for made in reads if shape and len(made) == len(shape)]
    if shape is None or not ranked:
        return None
    whole = (made for made in ranked if tuple(map(length_of, made)) == shape)
    return next(whole, None) or resized(ranked[0], shape)


# Rules by what is done. The first operand is known, where a rule does not say otherwise.

_Rule = Callable[[_Call], Dimensions | None]


def _of_first(rule: Callable[[_Call, Dimensions], Dimensions | None]) -> _Rule:
    """A rule for what is done to the first operand."""

    def run(call: _Call) -> Dimensions | None:
        return call.reads[0] and rule(call, call.reads[0])

    return run


@_of_first
def _convolved(call: _Call, first: Dimensions) -> Dimensions | None:
    """What a convolution reads is a grid, unless it is known for something else.

    Other parts of its lines are in the batch then, or it has no part of any.
    """
    examples, _, *places = first
    windows = bool(lines_of([examples]) & lines_of(places))
    beside = [part.line for parts in places for part in parts] == ["other"] * len(places)
    if tuple(map(length_of, places)) == call.shape[2:] and (windows or beside):
        return (examples, other(call.shape[1]), *places)
    return None if windows else (examples, other(call.shape[1]), *grid(call.shape[2:]))


@_of_first
def _weighted(call: _Call, first: Dimensions) -> Dimensions:
    """A linear layer's channels are made anew, whatever parts of places they had before."""
    return (*coarser(first[:-1]), other(call.shape[-1]))


@_of_first
def _attended(call: _Call, first: Dimensions) -> Dimensions:
    """What each query reads, its channels made anew."""
    return (*first[:-1], other(call.shape[-1]))


@_of_first
def _multiplied(call: _Call, first: Dimensions) -> Dimensions:
    """Rows of the first operand, columns of the second."""
    second = call.reads[1] if len(call.reads) > 1 else None
    return once((*first[:-1], second[-1] if second else other(call.shape[-1])))


def _summed(call: _Call) -> Dimensions | None:
    """An einsum with its labels written out."""
    read, arrow, written = str(call.node.args[0]).replace(" ", "").partition("->")
    labels = read.split(",")
    if not arrow or "." in read or len(labels) != len(call.reads):
        return None
    known: dict[str, Dimension] = {}
    for label, dimensions in zip(labels, call.reads, strict=True):
        if dimensions is None:
            return None
        for name, parts in zip(label, dimensions, strict=True):
            known.setdefault(name, parts)
    return once(known[name] for name in written)


@_of_first
def _turned(call: _Call, first: Dimensions) -> Dimensions | None:
    """Found by turning a tensor that has another length in every dimension."""
    if len(call.node.all_input_nodes) > 1:
        return None
    blank = torch.empty(tuple(range(2, 2 + len(first))), device="meta")
    turn: Any = call.node.target
    if call.node.op == "call_method":
        turn = getattr(torch.Tensor, turn)
    turned = turn(blank, *call.node.args[1:], **call.node.kwargs)
    return tuple(first[size - 2] for size in turned.shape)


@_of_first
def _reshaped(call: _Call, first: Dimensions) -> Dimensions | None:
    return reshaped(first, call.shape)


@_of_first
def _cut_out(call: _Call, first: Dimensions) -> Dimensions | None:
    """Squares of a map: the places in them are beside the channels, they themselves in a row."""
    examples, channels, *places = first
    side = isqrt(call.shape[1] // length_of(channels))
    if not all(is_whole(parts) and length_of(parts) % side == 0 for parts in places):
        return None
    cut = [reshaped((parts,), (length_of(parts) // side, side)) or () for parts in places]
    outside, inside = (tuple(part for pair in cut for part in pair[at]) for at in (0, 1))
    return examples, (*channels, *inside), outside


@_of_first
def _unbound(call: _Call, first: Dimensions) -> Dimensions | None:
    """Several tensors that have all dimensions but one."""
    along = call.argument(1, "dim", 0)
    if not isinstance(along, int):
        return None
    at = along % len(first)
    return (*first[:at], *first[at + 1 :])


@_of_first
def _parted(call: _Call, first: Dimensions) -> Dimensions:
    """Several tensors, each a part along one dimension."""
    return first


@_of_first
def _taken(call: _Call, first: Dimensions) -> Dimensions | None:
    """One of several tensors, or a part of one."""
    if _shape(call.node.all_input_nodes[0]) is None:
        return resized(first, call.shape) if len(call.shape) == len(first) else None
    index: Any = call.node.args[1]
    asked = list(index) if isinstance(index, tuple) else [index]
    if not all(map(_is_plain_index, asked)):
        return None
    if ... in asked:
        at = asked.index(...)
        missing = len(first) - sum(one is not None for one in asked) + 1
        asked[at : at + 1] = [slice(None)] * missing
    left, made = list(first), list[Dimension]()
    for one in asked:
        if one is None:
            made.append(())
        elif isinstance(one, int):
            left.pop(0)
        else:
            made.append(_sliced(left.pop(0), one))
    return (*made, *left)


def _is_plain_index(one: Any) -> bool:
    bounds = (one.start, one.stop, one.step) if isinstance(one, slice) else (one,)
    return all(bound is None or bound is ... or isinstance(bound, int) for bound in bounds)


def _sliced(parts: Dimension, by: slice) -> Dimension:
    start, stop, step = by.indices(length_of(parts))
    length = len(range(start, stop, step))
    return parts if length == length_of(parts) else cropped(parts, start, length, step)


@_of_first
def _narrowed(call: _Call, first: Dimensions) -> Dimensions | None:
    names = ("dim", "start", "length")
    along, start, length = (call.argument(at, name) for at, name in enumerate(names, 1))
    if not all(isinstance(one, int) for one in (along, start, length)):
        return None
    made = list(first)
    made[along] = cropped(made[along], start, length)
    return tuple(made)


def _joined(call: _Call) -> Dimensions | None:
    """As the largest that is known, where some may be a table; longer along one dimension."""
    known = [made for made in call.reads if made and len(made) == len(call.shape)]
    if not known:
        return None
    largest = max(known, key=lambda made: prod(map(length_of, made)))
    return tuple(
        parts if length_of(parts) == size else lengthened(parts, size)
        for parts, size in zip(largest, call.shape, strict=True)
    )


@_of_first
def _rolled(call: _Call, first: Dimensions) -> Dimensions | None:
    shifts, along = (_tuple(call.argument(*one)) for one in ((1, "shifts"), (2, "dims")))
    made = list(first)
    for shift, at in zip(shifts, along, strict=False):
        line = line_of(made[at]) if isinstance(at, int) else None
        if line is None or not isinstance(shift, int):
            return None
        made[at] = whole(line.rolled(shift))
    return tuple(made)


@_of_first
def _padded(call: _Call, first: Dimensions) -> Dimensions | None:
    by = _tuple(call.argument(1, "pad"))
    made = list(first)
    for behind, pair in enumerate(zip(by[::2], by[1::2], strict=False), 1):
        made[-behind] = _longer(made[-behind], pair, call.shape[-behind])
    return tuple(made)


def _longer(parts: Dimension, by: tuple[Any, Any], length: int) -> Dimension:
    line = line_of(parts)
    if by == (0, 0):
        return parts
    if line is None or not all(isinstance(one, int) and one >= 0 for one in by):
        return other(length)
    return whole(line.padded(by))


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _named(rule: _Rule, names: str) -> Mapping[str, _Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, _Rule] = {
    **_named(_convolved, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_named(_weighted, "linear"),
    **_named(_attended, "scaled_dot_product_attention"),
    **_named(_multiplied, "matmul bmm"),
    **_named(_summed, "einsum"),
    **_named(_turned, "permute transpose t adjoint swapaxes swapdims movedim moveaxis"),
    **_named(_reshaped, "reshape view view_as reshape_as flatten unflatten squeeze unsqueeze"),
    **_named(_cut_out, "squares"),
    **_named(_unbound, "unbind"),
    **_named(_parted, "chunk split split_with_sizes tensor_split"),
    **_named(_taken, "getitem"),
    **_named(_narrowed, "narrow"),
    **_named(_joined, "cat concat concatenate"),
    **_named(_rolled, "roll"),
    **_named(_padded, "pad"),
}
_SHUFFLES = {  # what moves places about in other ways
    *("flip", "sort", "gather", "index_select", "take_along_dim", "rot90", "scatter", "topk"),
    *("unfold", "fold", "pixel_shuffle", "pixel_unshuffle", "pixelshuffle", "pixelunshuffle"),
    *("repeat", "repeat_interleave", "tile", "grid_sample", "argsort"),
}
