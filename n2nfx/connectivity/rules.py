"""What each operation does to channels: one small function per kind of operation, and the table.

A rule gets the call and gives its value, or `None` where it cannot say (or raises `Unfollowed`):
the operation is a hub then. A rule must never say less than there is: leaving out a path would call
live weights dead. Norms are channel to channel: the statistics a layer norm shares are no path.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from n2nfx.connectivity.moves import Unfollowed, move
from n2nfx.connectivity.values import Loom, Value, broadcasts
from n2nfx.tracing.ops import kind_of, name_of


@dataclass(frozen=True, eq=False)
class Call:
    """One node: its arguments as values, and its shape where it gives one tensor.

    `constant` gives the tensor of a node that depends on no input.
    """

    loom: Loom
    node: fx.Node
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...] | None
    constant: Callable[[fx.Node], Tensor | None]

    @property
    def values(self) -> list[Value]:
        """Every value among the arguments that depends on an input."""
        return live_values((self.args, self.kwargs))

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by place or by name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    @property
    def first(self) -> Any:
        """The first argument, which most operations work on."""
        return self.argument(0, "input")

    @property
    def is_about_first(self) -> bool:
        """Whether it gives one tensor, and its first argument alone depends on an input."""
        return self.shape is not None and set(self.values) == {self.first}


Rule = Callable[[Call], Any]


def live_values(value: Any) -> list[Value]:
    """The values that depend on an input, in nested arguments."""
    found: list[Value] = []

    def visit(item: Any) -> Any:
        if isinstance(item, Value) and item.number is not None:
            found.append(item)
        return item

    map_aggregate(value, visit)
    return found


def rule_of(graph_module: fx.GraphModule, call: Call) -> Rule | None:
    """The rule for a call, or None where there is none."""
    kind = kind_of(graph_module, call.node)
    if kind in ("norm", "fused"):
        return _normed
    if kind in ("activation", "passing", "add"):
        return _met
    name = _name(call)
    table = _MODULES if call.module is not None else _FUNCTIONS
    if name in table:
        return table[name]
    return _pooled if _dimensions_pooled(name) else None


def _name(call: Call) -> str:
    if call.module is not None:
        return type(call.module).__name__
    return name_of(call.node).strip("_")


def _normed(call: Call) -> Any:
    return call.first if call.is_about_first and call.first.shape == call.shape else None


def _as_first(call: Call) -> Any:
    """The first operand in another form, whatever form the others lend it."""
    return call.first if call.first.shape == call.shape else None


def _met(call: Call) -> Any:
    """Position by position."""
    shape = call.shape
    if shape is None or not all(broadcasts(value, shape) for value in call.values):
        return None
    return call.loom.joined(call.values, shape)


def _moved(call: Call) -> Any:
    """Whatever moves its operands about and computes nothing."""

    def run(numbers: Callable[[Value], Any]) -> Any:
        def tensor(item: Any) -> Any:
            return numbers(item) if isinstance(item, Value) else item

        args, kwargs = map_aggregate(call.args, tensor), map_aggregate(dict(call.kwargs), tensor)
        if call.module is not None:
            return call.module.forward(*args, **kwargs)
        if call.node.op == "call_method":
            return getattr(args[0], str(call.node.target))(*args[1:], **kwargs)
        assert callable(call.node.target)
        return call.node.target(*args, **kwargs)

    stacked = _name(call) == "stack"
    moved = move(call.loom, call.values, run, stacked, _form(call))
    return moved if call.shape is None or moved.shape == call.shape else None


def _form(call: Call) -> Hashable:
    """What is the same of all calls that move operands of the same form alike; or None."""
    known = list(dict.fromkeys(call.values))
    tensors = []

    def told(item: Any) -> Any:
        if isinstance(item, Tensor):
            tensors.append(item)
        if isinstance(item, Value):
            return item.shape if item.number is None else f"operand {known.index(item)}"
        return item

    arguments = repr(map_aggregate((call.args, dict(call.kwargs)), told))
    return None if tensors else (call.module or call.node.target, arguments)


def in_place(call: Call) -> Any:
    """What a tensor becomes when a part of it is assigned to, or None."""
    target, index, assigned = call.args
    where = index if isinstance(index, tuple | list) else (index,)
    if any(isinstance(item, Value) for item in where):
        return None

    def run(numbers: Callable[[Value], Any]) -> Any:
        moved = numbers(target).clone(memory_format=torch.contiguous_format)
        moved[index] = numbers(assigned) if isinstance(assigned, Value) else 0.0
        return moved

    return move(call.loom, call.values, run)


def _indexed(call: Call) -> Any:
    """A move, unless a tensor that depends on the input says where to."""

    def content(node: fx.Node) -> Any:
        found = call.constant(node)
        if found is None:
            raise Unfollowed
        return found

    index = call.args[1]
    if live_values(index):
        return None
    where = index if isinstance(index, tuple | list) else (index,)
    if any(isinstance(item, Value) for item in where):
        index = map_arg(call.node.args[1], content)
    return _moved(replace(call, args=(call.args[0], index)))


def _padded(call: Call) -> Any:
    """A move; what is padded with a constant depends on nothing."""
    settings = {name: value for name, value in call.kwargs.items() if name != "value"}
    return _moved(replace(call, args=call.args[:3], kwargs=settings))


def _padded_by_module(call: Call) -> Any:
    """The same; a module pads with a value of its own."""
    return None if getattr(call.module, "value", 0) else _moved(call)


def _pooled(call: Call) -> Any:
    """Over windows in the last dimensions, those before kept as they are."""
    if not call.is_about_first or call.shape is None:
        return None
    value, name = call.first, _name(call)
    places = range(-(_dimensions_pooled(name) or len(value.shape) - 2), 0)
    pooled = [dim for dim in places if dim + len(value.shape) in value.axes]
    if any(call.shape[dim] != 1 for dim in pooled):
        return None  # neighbouring channels in windows
    return _spread(call, call.loom.reduced(value, places))


def _spread(call: Call, value: Value) -> Any:
    """A value that was summed up, at every position that it is needed at."""
    shape = call.shape
    return call.loom.joined([value], shape) if shape and broadcasts(value, shape) else None


def _dimensions_pooled(name: str) -> int:
    """How many dimensions a pooling is named for: 2 for AdaptiveAvgPool2d or max_pool2d, or 0."""
    found = re.fullmatch(r"_?(?:adaptive|fractional)?_?(?:avg|max|lp)_?pool([123])d", name.lower())
    return int(found[1]) if found else 0


def _reduced(call: Call) -> Any:
    """Over the dimensions that are named, or all."""
    return _met(call) if isinstance(call.argument(1, "other"), Value) else _reduced_over(call, 1)


def _normed_over(call: Call) -> Any:
    return _reduced_over(call, 2)


def _reduced_over(call: Call, place: int) -> Any:
    value, dims = call.first, call.argument(place, "dim")
    if call.values != [value]:
        return None
    if dims is None or dims == () or isinstance(dims, bool):
        dims = range(len(value.shape))
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    if call.shape is None:  # what was found, and where
        return [call.loom.reduced(value, dims, call.argument(place + 1, "keepdim", False))] * 2
    both = (call.loom.reduced(value, dims, keep) for keep in (True, False))
    return next((left for left in both if left.shape == call.shape), None)


def _mixed(call: Call) -> Any:
    """Along one dimension, everything with everything."""
    return _mixed_along(call, _dim(call, None))


def _dim(call: Call, default: Any) -> Any:
    """The dimension that a function or a module works along."""
    return call.argument(1, "dim", default) if call.module is None else vars(call.module)["dim"]


def _normalized(call: Call) -> Any:
    return _mixed_along(call, call.argument(2, "dim", 1))


def _mixed_along(call: Call, dim: Any) -> Any:
    if not call.is_about_first or not isinstance(dim, int) or call.shape is None:
        return None
    value, whole = call.first, call.loom.reduced(call.first, (dim,))
    if value.number == whole.number:
        return _spread(call, value)
    return call.loom.joined([value, whole], call.shape) if value.shape == call.shape else None


def _gated(call: Call) -> Any:
    """A half of the channels times the other half."""
    if not call.is_about_first or call.shape is None:
        return None
    dim = _dim(call, -1)
    halves = move(call.loom, call.values, lambda numbers: numbers(call.first).chunk(2, dim))
    return call.loom.joined(halves, call.shape)


def _multiplied(call: Call) -> Any:
    """A matrix product: row by column, for every matrix of the stack."""
    left, right = call.first, call.argument(1, "other", call.kwargs.get("mat2"))
    if call.shape is None or min(len(left.shape), len(right.shape)) < 2:
        return None
    rows, columns = call.loom.reduced(left, (-1,)), call.loom.reduced(right, (-2,))
    return call.loom.joined([rows, columns], call.shape)


def _attended(call: Call) -> Any:
    """Each query's mixture of the values, weighed by all keys, and by a bias of its own."""
    names = ("query", "key", "value")
    query, key, value = (call.argument(place, name) for place, name in enumerate(names))
    shape, loom, bias = call.shape, call.loom, call.argument(3, "attn_mask")
    if shape is None or not set(call.values) <= {query, key, value, bias}:
        return None
    weights = [loom.reduced(query, (-1,)), loom.reduced(key, (-1, -2))]
    if isinstance(bias, Value):
        weights.append(loom.reduced(bias, (-1,)))
    read = loom.reduced(value, (-2,))
    if not all(broadcasts(one, shape) for one in (*weights, read)):
        return None
    return loom.joined([loom.joined(weights, (*shape[:-1], 1)), read], shape)


def _looked_up(call: Call) -> Any:
    """A row of a table for every index."""
    index = next(iter(call.values))
    if call.shape is None or len(call.values) > 1 or call.shape[:-1] != index.shape:
        return None
    return Value(index.number, call.shape, index.axes)


def _constant(call: Call) -> Any:
    """Filled anew, like its operand in shape only."""
    return None if call.shape is None else Value(None, call.shape)


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_FUNCTIONS: dict[str, Rule] = {
    **_table(
        _met,
        "add sub mul div true_divide truediv floordiv floor_divide mod remainder pow neg abs exp "
        "expm1 log log1p log2 sqrt rsqrt square reciprocal sin cos tan asin acos atan sinh cosh "
        "erf erfc round floor ceil trunc sign clamp clip clamp_min clamp_max maximum minimum "
        "where lerp addcmul addcdiv masked_fill fill iadd isub imul itruediv ipow rsub subtract "
        "multiply divide logical_and logical_or logical_not and or xor invert gt lt ge le eq ne "
        "isnan isinf isfinite nan_to_num positive feature_dropout alpha_dropout bernoulli "
        "threshold hardshrink softshrink tanhshrink logit sinc exp2 fmod hypot "
        "atan2 bitwise_and bitwise_or",
    ),
    **_table(_as_first, "to float half bfloat16 double int long bool type type_as of_size of_kind"),
    **_table(
        _moved,
        "reshape view view_as reshape_as flatten unflatten permute transpose t adjoint swapaxes "
        "swapdims movedim moveaxis squeeze unsqueeze expand expand_as repeat repeat_interleave "
        "tile roll flip rot90 chunk split split_with_sizes tensor_split unsafe_chunk unbind "
        "narrow select stack cat concat concatenate hstack vstack pixel_shuffle pixel_unshuffle "
        "channel_shuffle native_channel_shuffle detach clone contiguous getattr alias unfold "
        "im2col broadcast_to diagonal tril triu ravel",
    ),
    **_table(_indexed, "getitem"),
    **_table(_padded, "pad"),
    **_table(
        _pooled,
        "interpolate upsample upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d",
    ),
    **_table(
        _reduced,
        "mean sum amax amin max min var std prod all any argmax argmin nanmean median logsumexp",
    ),
    **_table(_normed_over, "norm"),
    **_table(_mixed, "softmax log_softmax softmin"),
    **_table(_normalized, "normalize"),
    **_table(_gated, "glu"),
    **_table(_multiplied, "matmul bmm mm"),
    **_table(_attended, "scaled_dot_product_attention"),
    **_table(_looked_up, "embedding"),
    **_table(
        _constant,
        "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones "
        "new_full new_empty new_tensor",
    ),
}
_MODULES: dict[str, Rule] = {
    **_table(
        _moved,
        "Flatten Unflatten PixelShuffle PixelUnshuffle ChannelShuffle Unfold ReflectionPad1d "
        "ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d "
        "CircularPad1d CircularPad2d CircularPad3d",
    ),
    **_table(
        _padded_by_module,
        "ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d",
    ),
    **_table(_pooled, "Upsample UpsamplingNearest2d UpsamplingBilinear2d"),
    **_table(_mixed, "Softmax LogSoftmax Softmin"),
    **_table(_gated, "GLU"),
    **_table(_looked_up, "Embedding"),
    **_table(_met, "Dropout AlphaDropout FeatureAlphaDropout"),
}
