"""What the dimensions of a graph's values are made of: rows, columns, windows of them, heads.

A reshape cuts a dimension into parts or joins several, a transpose puts them elsewhere: windows of
a map are a part of its rows beside a part of its columns. Followed from where a map is made (or a
row of tokens), they say which place every element of a later value stands for, however it lies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isqrt, prod
from typing import Any, Literal, NamedTuple

import torch
from torch import fx, nn

from n2nfx.tracing.ops import name_of
from n2nfx.tracing.tape import Spec

Shape = tuple[int, ...]


class Change(NamedTuple):
    """What was done to a whole line: rolled by one number, or padded by two, before and behind."""

    how: Literal["roll", "pad"]
    by: tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """A direction of a grid of places, the `number`th of `rank`, with what padding added.

    A row of tokens is a grid of rank 1. `changes` are what was done since the grid was made.
    """

    number: int
    rank: int
    length: int
    changes: tuple[Change, ...] = ()

    @property
    def places(self) -> int:
        """How long it was before it was padded."""
        return self.length - sum(sum(by) for how, by in self.changes if how == "pad")


class Part(NamedTuple):
    """A part of a dimension: `size` steps along a line, each over `step` of its places.

    Or examples, or whatever else is no place: channels, heads, keys.
    """

    line: Line | Literal["batch", "other"]
    size: int
    step: int = 1


Dimension = tuple[Part, ...]  # the last part runs fastest; none where the dimension is 1 long
Dimensions = tuple[Dimension, ...]


def is_whole(parts: Sequence[Part]) -> bool:
    """Whether parts, in this order, are one line."""
    if not parts or isinstance(parts[0].line, str):
        return False
    reach = parts[0].line.length
    for part in parts:
        if part.line != parts[0].line or part.size * part.step != reach:
            return False
        reach = part.step
    return reach == 1


def is_grid(parts: Sequence[Part]) -> bool:
    """Whether parts, in this order, are all lines of one grid, whole and unchanged; or none."""
    lines = [part.line for part in parts if isinstance(part.line, Line)]
    numbers = [(line.number, line.rank) for line in lines if not line.changes]
    whole = all(is_whole([part]) for part in parts)
    return whole and numbers == [(at, len(parts)) for at in range(len(parts))]


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
            fits = found is None or shape is None or tuple(map(_length, found)) == shape
            self._known[node] = found if fits else None

    def of(self, node: fx.Node) -> Dimensions | None:
        """The dimensions of a node's value."""
        return self._known[node]

    def _find(self, node: fx.Node) -> Dimensions | None:
        shape, name = _shape(node), self._name(node)
        if node.op == "placeholder":
            return _input(shape, self._last) if shape and len(shape) > 1 else None
        reads = [self._known[read] for read in node.all_input_nodes]
        if name in _RULES:
            known = reads and (reads[0] is not None or _RULES[name] is _joined)
            return _RULES[name](node, reads, shape or ()) if known else None
        whole = [made for made in reads if made and shape and len(made) == len(shape)]
        if name in _SHUFFLES or shape is None or not whole:
            return None
        alike = [made for made in whole if tuple(map(_length, made)) == shape]
        return alike[0] if alike else _resized(whole[0], shape)

    def _name(self, node: fx.Node) -> str:
        """What a node does, by name; a layer is called as its function is."""
        if node.op != "call_module":
            return name_of(node)
        called = self._module.get_submodule(str(node.target))
        if isinstance(called, nn.modules.conv._ConvNd):
            return "conv2d"
        if isinstance(called, nn.Unfold) and _tiles(called):
            return "tiles"
        return "linear" if isinstance(called, nn.Linear) else type(called).__name__.lower()


def _tiles(unfold: nn.Unfold) -> bool:
    """Whether squares lie side by side."""
    given = (unfold.kernel_size, unfold.stride, unfold.padding, unfold.dilation)
    (size, *others), *rest = (one if isinstance(one, tuple) else (one, one) for one in given)
    return others == [size] and rest == [(size, size), (0, 0), (1, 1)]


def _shape(node: fx.Node) -> Shape | None:
    """The shape of a node's value at the larger batch, None where that is not one tensor."""
    spec = node.meta.get("spec")
    one_tensor = isinstance(spec, tuple) and all(isinstance(one, Spec) for one in spec)
    return spec[1].shape if one_tensor else None  # type: ignore[index]


def _length(dimension: Dimension) -> int:
    return prod(part.size for part in dimension)


def _other(length: int) -> Dimension:
    return (Part("other", length),) if length > 1 else ()


def _line(number: int, rank: int, length: int) -> Dimension:
    return (Part(Line(number, rank, length), length),) if length > 1 else ()


def _grid(places: Shape) -> Dimensions:
    return tuple(_line(number, len(places), length) for number, length in enumerate(places))


def _input(shape: Shape, last: bool) -> Dimensions:
    examples, *rest = shape
    channels, places = (rest[-1], rest[:-1]) if last else (rest[0], rest[1:])
    grid = _grid(tuple(places))
    inside = (*grid, _other(channels)) if last else (_other(channels), *grid)
    return (Part("batch", examples),), *inside


# What operations make of the dimensions of what they read. `shape` is that of what they make.


def _resized(before: Dimensions, shape: Shape) -> Dimensions:
    """Some dimensions have another length: grids are sampled anew, of all else nothing is known."""
    pairs = zip(before, shape, strict=True)
    return tuple(
        parts if _length(parts) == size else _sampled(parts, size) for parts, size in pairs
    )


def _sampled(parts: Dimension, length: int) -> Dimension:
    examples = tuple(part for part in parts if part.line == "batch")
    if examples and _length(examples) == length:
        return examples  # one of several batches
    if _is_row(parts):
        return _line(0, 1, length)
    line = parts[0].line if len(parts) == 1 and is_whole(parts) else "other"
    if isinstance(line, str) or line.changes:
        return _other(length)
    return _line(line.number, line.rank, length)


def _convolved(_: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions | None:
    """What a convolution reads is a grid, unless other parts of the same lines lie elsewhere."""
    examples, _, *places = reads[0]
    windows = _lines_of([examples]) & _lines_of(places)
    beside = [part.line for parts in places for part in parts] == ["other"] * len(places)
    if not (windows or (beside and places)):
        return examples, _other(shape[1]), *_grid(shape[2:])
    same = tuple(map(_length, places)) == shape[2:]
    return (examples, _other(shape[1]), *places) if same else None


def _lines_of(dimensions: Sequence[Dimension]) -> set[Line]:
    return {part.line for parts in dimensions for part in parts if isinstance(part.line, Line)}


def _weighted(_: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions:
    """Linear layers make the last dimension anew, and so a coarser grid of what it had of places."""
    return (*_coarser(reads[0][:-1]), _other(shape[-1]))


def _coarser(dimensions: Dimensions) -> Dimensions:
    """Parts of lines are whole ones of a coarser grid where no part takes single places."""
    finest = {
        line: min(part.step for parts in dimensions for part in parts if part.line == line)
        for line in _lines_of(dimensions)
    }
    if any(line.changes and step > 1 for line, step in finest.items()):
        return dimensions

    def scaled(part: Part) -> Part:
        if isinstance(part.line, str):
            return part
        by = finest[part.line]
        line = replace(part.line, length=part.line.length // by)
        return Part(line, part.size, part.step // by)

    return tuple(tuple(map(scaled, parts)) for parts in dimensions)


def _attended(_: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions:
    """Queries are the places; the last dimension is made anew."""
    return (*reads[0][:-1], _other(shape[-1]))


def _multiplied(_: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions | None:
    """Rows of the first operand, columns of the second."""
    columns = reads[1][-1] if len(reads) > 1 and reads[1] else _other(shape[-1])
    return _once((*reads[0][:-1], columns))


def _once(dimensions: Sequence[Dimension]) -> Dimensions:
    """What is there twice is places once, and then their keys."""
    made: list[Dimension] = []
    for parts in dimensions:
        known = {part for dimension in made for part in dimension if part.line != "other"}
        made.append(_other(_length(parts)) if known & set(parts) else parts)
    return tuple(made)


def _summed(node: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions | None:
    """An einsum, its labels written out."""
    read, arrow, written = str(node.args[0]).replace(" ", "").partition("->")
    labels = read.split(",")
    if not arrow or "." in read or len(labels) != len(reads) or None in reads:
        return None
    known: dict[str, Dimension] = {}
    for label, dimensions in zip(labels, reads, strict=True):
        for name, parts in zip(label, dimensions, strict=True):
            known.setdefault(name, parts)
    return _once([known[name] for name in written])


def _turned(node: fx.Node, reads: Sequence[Any], _: Shape) -> Dimensions | None:
    """Found by turning a tensor that has another length in every dimension."""
    blank = torch.empty(tuple(range(2, 2 + len(reads[0]))), device="meta")
    if any(read is not node.args[0] for read in node.all_input_nodes):
        return None
    turn: Any = node.target
    turn = getattr(torch.Tensor, turn) if node.op == "call_method" else turn
    return tuple(reads[0][size - 2] for size in turn(blank, *node.args[1:], **node.kwargs).shape)


def _reshaped(_: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions | None:
    """The parts in their order, cut where a new dimension ends within one."""
    left = [part for dimension in reads[0] for part in dimension]
    made: list[Dimension] = []
    for size in shape:
        taken: list[Part] = []
        while _length(tuple(taken)) < size:
            if not left:
                return None
            split = _split(left.pop(0), size // _length(tuple(taken)))
            if split is None:
                return None
            taken.append(split[0])
            left = [*split[1:], *left]
        made.append(_merged(taken))
    return None if left else tuple(made)


def _split(part: Part, size: int) -> tuple[Part, ...] | None:
    """A part, or its two halves where it is more than `size`; None where it does not divide."""
    if size % part.size == 0:
        return (part,)
    if part.size % size or part.line == "batch":
        return None
    inner = part.size // size
    return Part(part.line, size, part.step * inner), Part(part.line, inner, part.step)


def _merged(parts: Sequence[Part]) -> Dimension:
    """Parts of a line that follow each other are one."""
    made: list[Part] = []
    for part in parts:
        if made and made[-1].line == part.line and made[-1].step == part.step * part.size:
            part = Part(part.line, made.pop().size * part.size, part.step)
        made.append(part)
    return tuple(made)


def _tiled(_: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions | None:
    """Squares of a map, side by side: their places are beside the channels, they are a row."""
    examples, channels, *places = reads[0]
    side = isqrt(shape[1] // _length(channels))
    if not all(is_whole(parts) and _length(parts) % side == 0 for parts in places):
        return None
    cut = [_split(parts[0], _length(parts) // side) for parts in places]
    inner, outer = (tuple(pair[at] for pair in cut if pair) for at in (1, 0))
    return examples, (*channels, *inner), outer


def _unbound(node: fx.Node, reads: Sequence[Any], _: Shape) -> Dimensions | None:
    """Several tensors that have all dimensions but one."""
    along = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(along, int):
        return None
    at = along % len(reads[0])
    return (*reads[0][:at], *reads[0][at + 1 :])


def _parted(_: fx.Node, reads: Sequence[Any], __: Shape) -> Dimensions:
    """Several tensors, each a part along one dimension."""
    return reads[0]


def _taken(node: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions | None:
    """One of several tensors, or a part of one."""
    source, index = node.args
    if _shape(source) is None:  # type: ignore[arg-type]
        return _resized(reads[0], shape) if len(shape) == len(reads[0]) else None
    asked = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(one, int | slice | None | type(...)) for one in asked):
        return None
    if ... in asked:
        at = asked.index(...)
        missing = len(reads[0]) - sum(one is not None for one in asked) + 1
        asked[at : at + 1] = [slice(None)] * missing
    left, made = list(reads[0]), list[Dimension]()
    for one in asked:
        if one is None:
            made.append(())
        elif isinstance(one, int):
            left.pop(0)
        else:
            made.append(_sliced(left.pop(0), one))
    return (*made, *left)


def _sliced(parts: Dimension, by: slice) -> Dimension:
    """Every nth place is a sample; from a padded line what was there before can be taken."""
    whole = _length(parts)
    if any(isinstance(bound, fx.Node) for bound in (by.start, by.stop, by.step)):
        return (Part("other", -1),)
    start, stop, step = by.indices(whole)
    length = len(range(start, stop, step))
    return parts if length == whole else _cropped(parts, start, length, step)


def _cropped(parts: Dimension, start: int, length: int, step: int = 1) -> Dimension:
    if _is_row(parts):
        return _line(0, 1, length)
    line = parts[0].line if len(parts) == 1 and is_whole(parts) else "other"
    if isinstance(line, str):
        return _other(length)
    if line.changes and line.changes[-1] == ("pad", (start, line.length - start - length)):
        before = replace(line, length=length, changes=line.changes[:-1])
        return (Part(before, length),) if length > 1 else ()
    return _sampled(parts, length) if 0 <= start < step > 1 else _other(length)


def _narrowed(node: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions | None:
    along, start, length = (*node.args[1:], None, None, None)[:3]
    if not all(isinstance(one, int) for one in (along, start, length)):
        return None
    made = list(reads[0])
    made[along] = _cropped(made[along], start, length)  # type: ignore[index, arg-type]
    return tuple(made)


def _joined(_: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions | None:
    """Longer rows, several batches; of anything else nothing is known."""
    known = next((made for made in reads if made and len(made) == len(shape)), None)
    return known and tuple(
        parts if _length(parts) == size else _longer(parts, size)
        for parts, size in zip(known, shape, strict=True)
    )


def _longer(parts: Dimension, length: int) -> Dimension:
    times = length // (_length(parts) or 1)
    if [part.line for part in parts] == ["batch"] and times * _length(parts) == length:
        return *_other(times), *parts
    return _line(0, 1, length) if _is_row(parts) else _other(length)


def _is_row(parts: Dimension) -> bool:
    """Whether a dimension is a row of tokens, or a map that was laid out as one."""
    lines = [part.line for part in parts if isinstance(part.line, Line)]
    rank = lines[0].rank if lines else 0
    return is_grid(parts) and len(parts) == rank


def _rolled(node: fx.Node, reads: Sequence[Any], _: Shape) -> Dimensions | None:
    """Whole lines, and what is rolled back again is as it was."""
    shifts, along = (*node.args[1:], *node.kwargs.values())[:2]
    pairs = zip(_tuple(shifts), _tuple(along), strict=True)
    made = list(reads[0])
    for shift, at in pairs:
        line = made[at][0].line if len(made[at]) == 1 and is_whole(made[at]) else None
        if not isinstance(line, Line) or not isinstance(shift, int):
            return None
        made[at] = (Part(_shifted(line, shift), line.length),)
    return tuple(made)


def _shifted(line: Line, by: int) -> Line:
    *before, last = line.changes or (None,)
    if last is None or last.how != "roll":
        return replace(line, changes=(*line.changes, Change("roll", (by,))))
    total = (last.by[0] + by) % line.length
    return replace(line, changes=(*before, Change("roll", (total,))) if total else (*before,))


def _padded(node: fx.Node, reads: Sequence[Any], shape: Shape) -> Dimensions | None:
    """Whole lines, longer by zeros."""
    by = _tuple(node.args[1] if len(node.args) > 1 else node.kwargs.get("pad"))
    made = list(reads[0])
    for at, pair in zip(reversed(range(len(made))), zip(by[::2], by[1::2], strict=True)):
        if _length(made[at]) == shape[at]:
            continue
        line = made[at][0].line if len(made[at]) == 1 and is_whole(made[at]) else None
        if not isinstance(line, Line) or not all(isinstance(one, int) for one in pair):
            made[at] = _other(shape[at])
            continue
        changes = (*line.changes, Change("pad", pair))
        longer = replace(line, length=shape[at], changes=changes)
        made[at] = (Part(longer, shape[at]),)
    return tuple(made)


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


Rule = Callable[[fx.Node, Sequence[Any], Shape], Dimensions | None]


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, Rule] = {
    **_named(
        _convolved,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    ),
    **_named(_weighted, "linear"),
    **_named(_attended, "scaled_dot_product_attention"),
    **_named(_multiplied, "matmul bmm"),
    **_named(_summed, "einsum"),
    **_named(_turned, "permute transpose t adjoint swapaxes swapdims movedim moveaxis"),
    **_named(
        _reshaped,
        "reshape view view_as reshape_as flatten unflatten squeeze unsqueeze ravel",
    ),
    **_named(_tiled, "tiles"),
    **_named(_unbound, "unbind"),
    **_named(_parted, "chunk split split_with_sizes tensor_split"),
    **_named(_taken, "getitem"),
    **_named(_narrowed, "narrow"),
    **_named(_joined, "cat concat concatenate"),
    **_named(_rolled, "roll"),
    **_named(_padded, "pad"),
}
# What moves places about in other ways.
_SHUFFLES = frozenset(
    "flip sort gather index_select take_along_dim rot90 scatter unfold fold pixel_shuffle "
    "pixel_unshuffle pixelshuffle pixelunshuffle repeat repeat_interleave tile "
    "grid_sample topk argsort".split()
)
