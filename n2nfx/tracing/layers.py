"""The prunable layers of a traced module, in order of execution."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional

from n2nfx.graphmodule import WholeModel, graphs_of, join, nodes_in
from n2nfx.masked import PLAIN_CLASS
from n2nfx.network import Layer
from n2nfx.tracing.ops import first_tensor, is_view
from n2nfx.tracing.tape import Inner
from n2nfx.tracing.weights import is_weighted

_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}

Kind = Literal["conv", "linear"]


@dataclass(frozen=True)
class Operand:
    """What a functional convolution or linear call takes for its weight, and how it came about.

    `reads` are the nodes that read a parameter on the way to it. It is `dynamic` if it depends on
    the network's input too; `viewed` if it is no more than a part of a parameter, or one in
    another shape: then a mask on the parameter is a mask on it.
    """

    node: fx.Node
    reads: tuple[fx.Node, ...]
    dynamic: bool
    viewed: bool


@dataclass(frozen=True)
class _Call:
    """One call of a layer, and the share of its weight that it uses, at how many places."""

    layer: Layer
    uses: Fraction
    parameter: nn.Parameter


def find_layers(module: fx.GraphModule) -> tuple[Layer, ...]:
    """Every prunable weight once, however often and under how many names it is used.

    Layers that only training runs are layers too.
    """
    weights = _Weights(_first_names(module), taken_by_others(module))
    return tuple(replace(call.layer, uses=int(call.uses)) for call in _calls(module, weights))


@dataclass(frozen=True)
class _Weights:
    """Every parameter's first name by its id, and what uses it where no mask can act."""

    names: dict[int, str]
    taken: dict[int, str]


def _calls(module: fx.GraphModule, weights: _Weights) -> list[_Call]:
    """One call of every layer, its uses those of all calls in evaluation, or else in training."""
    evaluation, *training = graphs_of(module)
    found = {graph: _sum_up(_calls_in(module, graph, weights)) for graph in (evaluation, *training)}
    order = dict.fromkeys(name for graph in (*training, evaluation) for name in found[graph])
    return [
        next(found[graph][name] for graph in (evaluation, *training) if name in found[graph])
        for name in order
    ]


def _sum_up(calls: Iterator[_Call]) -> dict[str, _Call]:
    """The layers by their weights' names, the uses of all calls together."""
    found: dict[str, _Call] = {}
    for call in calls:
        name = call.layer.weight
        before = found[name].uses if name in found else 0
        found[name] = replace(found.get(name, call), uses=before + call.uses)
    return found


def _calls_in(module: fx.GraphModule, graph: fx.Graph, weights: _Weights) -> Iterator[_Call]:
    for node in graph.nodes:
        found = _call_at(module, node, weights.names)
        if found is not None and id(found.parameter) not in weights.taken:
            yield found
        if "inner" in node.meta:
            yield from _calls_inside(module, node, weights)


def _first_names(module: nn.Module) -> dict[int, str]:
    """The first name of every parameter: tied weights are one weight."""
    return {id(parameter): name for name, parameter in module.named_parameters()}


def nodes_of(module: fx.GraphModule, graph: fx.Graph) -> Iterator[tuple[fx.Node, Layer]]:
    """Every call of every layer in one of the module's graphs, in order of execution."""
    names, taken = _first_names(module), taken_by_others(module)
    for node in graph.nodes:
        found = _call_at(module, node, names)
        if found is not None and id(found.parameter) not in taken:
            yield node, replace(found.layer, uses=int(found.uses))


def _call_at(module: fx.GraphModule, node: fx.Node, names: dict[int, str]) -> _Call | None:
    used = _weight_at(module, node)
    if used is None:
        return None
    name, weight, kind, transposed, share = used
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    layer = Layer(
        name=name,
        kind=kind,
        weight=names[id(weight)],
        weight_shape=tuple(weight.shape),
        reads=_shape(source),
        writes=_shape(node),
        uses=0,
    )
    return _Call(layer, share * _places(source if transposed else node, kind), weight)


def _weight_at(
    module: fx.GraphModule, node: fx.Node
) -> tuple[str, nn.Parameter, Kind, bool, Fraction] | None:
    """Name, weight, kind, whether transposed and what share of it, of what a node calls."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        if not is_weighted(called):
            return None
        weight = called.weight
        assert isinstance(weight, nn.Parameter)
        transposed = bool(getattr(called, "transposed", False))
        return str(node.target), weight, _kind(called), transposed, Fraction(1)
    operand = operand_of(module, node)
    read = operand and prunable_read(module, operand)
    if operand is None or read is None:
        return None
    weight = attribute(module, str(read.target))
    share = Fraction(prod(_whole_shape(operand.node)), weight.numel())
    kind = "linear" if node.target is functional.linear else "conv"
    return str(read.target), weight, kind, node.target in _TRANSPOSED, share


def _kind(layer: nn.Module) -> Kind:
    return "linear" if isinstance(layer, nn.Linear) else "conv"


def operand_of(module: fx.GraphModule, node: fx.Node) -> Operand | None:
    """The weight operand of a functional convolution or linear call, or None for another node."""
    operand = weight_operand(node)
    if operand is None:
        return None
    reads: list[fx.Node] = []
    dynamic, viewed, seen, ahead = False, True, {operand}, [operand]
    while ahead:
        at = ahead.pop()
        if at.op == "get_attr":
            if isinstance(attribute(module, str(at.target)), nn.Parameter):
                reads.append(at)
            continue
        if _is_activation(module, at):
            dynamic = True
            continue
        viewed = viewed and is_view(module, at)
        fresh = [read for read in at.all_input_nodes if read not in seen]
        seen.update(fresh)
        ahead += fresh
    return Operand(operand, tuple(reads), dynamic, viewed and not dynamic)


def _is_activation(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's value comes out of the network's input, as far as can be seen at once."""
    if node.op == "placeholder" or weight_operand(node) is not None:
        return True
    if node.op != "call_module":
        return False
    return any(True for _ in module.get_submodule(str(node.target)).parameters())


def prunable_read(module: fx.GraphModule, operand: Operand) -> fx.Node | None:
    """The read of the one parameter that a weight operand is made of, element by element."""
    if operand.dynamic:
        return None
    parameters = {str(read.target): read for read in operand.reads}
    if operand.viewed:
        return operand.reads[0] if len(parameters) == 1 else None
    shape = _whole_shape(operand.node)
    alike = [r for name, r in parameters.items() if attribute(module, name).shape == shape]
    return alike[0] if len(alike) == 1 else None


def weight_operand(node: fx.Node) -> fx.Node | None:
    """The node that a functional convolution or linear call takes its weight from, or None."""
    if node.target not in (*_CONVOLUTIONS, *_TRANSPOSED, functional.linear):
        return None
    operand = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return operand if isinstance(operand, fx.Node) else None


def attribute(module: nn.Module, path: str) -> Any:
    prefix, _, name = path.rpartition(".")
    return getattr(module.get_submodule(prefix), name)


def _places(node: fx.Node, kind: Kind) -> int:
    """Places of a node's value for one example, wherever the batch is among its dimensions."""
    channels = 1 if kind == "conv" else -1
    places = [prod(spec.shape) // spec.shape[channels] for spec in node.meta["spec"]]
    batches = [spec.shape[0] for spec in first_tensor(node.graph).meta["spec"]]
    grown = (places[1] - places[0]) // (batches[1] - batches[0])
    return grown or places[0]  # the same for every batch: it is used once, not per example


def _whole_shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["spec"][1].shape)


def _shape(node: fx.Node) -> tuple[int, ...]:
    """A node's activation shape without the batch, wherever it is among the dimensions.

    At the larger batch, which nothing squeezes.
    """
    small, large = (spec.shape for spec in node.meta["spec"])
    unlike = (at for at, sizes in enumerate(zip(small, large, strict=False)) if len({*sizes}) > 1)
    batch = next(unlike, 0)
    return (*large[:batch], *large[batch + 1 :])


# Layers inside of modules that are kept whole.


def _calls_inside(module: fx.GraphModule, node: fx.Node, weights: _Weights) -> Iterator[_Call]:
    """Those of every layer inside, in the model's order: which are called can depend on data.

    Of a part with a graph of its own, those are layers that its graph calls.
    """
    seen: dict[str, list[Inner]] = {}
    for inner in node.meta["inner"]:
        seen.setdefault(inner.name, []).append(inner)
    for path, layer in inside(module, node):
        if path in node.meta.get("parts", ()):
            yield from _calls_of_part(path, layer, node.meta["parts"][path], weights)
        elif is_weighted(layer) and id(layer.weight) not in weights.taken:
            for inner in seen.get(path, [Inner(path, (), ())]):
                yield _inner_call(inner, layer, weights.names)


def _calls_of_part(
    path: str, part: fx.GraphModule, examples: Fraction, weights: _Weights
) -> Iterator[_Call]:
    """The calls of a part, which gets so many examples for one of the model's, named from outside.

    How many that are can depend on data, as the number of boxes in a picture.
    """
    for call in _calls(part, weights):
        layer = replace(call.layer, name=join(path, call.layer.name))
        yield replace(call, layer=layer, uses=call.uses * examples)


def _inner_call(inner: Inner, layer: Any, names: dict[int, str]) -> _Call:
    kind = _kind(layer)
    sides = "channels" if kind == "conv" else "features"
    ends = getattr(layer, f"in_{sides}"), getattr(layer, f"out_{sides}")
    found = Layer(
        name=inner.name,
        kind=kind,
        weight=names[id(layer.weight)],
        weight_shape=tuple(layer.weight.shape),
        reads=inner.reads[1:] or ends[:1],
        writes=inner.writes[1:] or ends[1:],
        uses=0,
    )
    side = 0 if getattr(layer, "transposed", False) else 1
    seen = (inner.reads, inner.writes)[side]
    uses = Fraction(prod(seen), ends[side]) if seen else Fraction(0)
    return _Call(found, uses, layer.weight)


def inside(module: fx.GraphModule, node: fx.Node) -> Iterator[tuple[str, Any]]:
    """Every module inside the one that a node calls, itself included, with its path.

    A part with a graph of its own is one of them, and what is inside of that is not.
    """
    called = module.get_submodule(str(node.target))
    if isinstance(called, WholeModel):
        yield from _below(module, "", node.meta.get("parts", ()))
    else:
        yield from _below(called, str(node.target), node.meta.get("parts", ()))


def _below(
    module: nn.Module, path: str, parts: Container[str], known: set[nn.Module] | None = None
) -> Iterator[tuple[str, Any]]:
    """A module and all inside, each once, as `named_modules` has them, but nothing inside parts."""
    known = set() if known is None else known
    if module in known:
        return
    known.add(module)
    yield path, module
    if path not in parts:
        for name, child in module.named_children():
            yield from _below(child, join(path, name), parts, known)


# What no mask can act on.


def taken_by_others(module: fx.GraphModule) -> dict[int, str]:
    """What uses each parameter, if anything does, in a way that no mask can act on."""
    found: dict[int, str] = {}
    for part, node in nodes_in(module):
        if node.op == "call_module":
            found.update(_taken_at(part, node))
    return found


def _taken_at(module: fx.GraphModule, node: fx.Node) -> Iterator[tuple[int, str]]:
    parts = node.meta.get("parts", ())
    for path, part in inside(module, node):
        if path not in parts and not (is_weighted(part) or type(part) in PLAIN_CLASS):
            for parameter in part._parameters.values():
                if parameter is not None:
                    yield id(parameter), f"{path or 'the model'} ({type(part).__name__})"
    for name in node.meta.get("touched", ()):
        yield id(attribute(module, name)), f"a function inside {node.target}"
