"""What looks like a layer of a traced module and is none, or does the work of one, and why."""

from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from n2nfx.graphmodule import graphs_of, join, parts_of
from n2nfx.tracing.layers import (
    attribute,
    inside,
    operand_of,
    prunable_read,
    taken_by_others,
)
from n2nfx.tracing.ops import is_view, name_of
from n2nfx.tracing.weights import STOCK, is_weighted

_STOCK_NAMES = {stock.__name__ for stock in STOCK}
_QUANTIZED = ("torch.ao.nn.", "torch.nn.quantized", "torch.nn.intrinsic")
_MULTIPLYING = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
_PRODUCTS = {
    *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "addbmm", "baddbmm"),
    *("einsum", "tensordot", "bilinear"),
}


def notes_on(module: fx.GraphModule) -> tuple[str, ...]:
    """A note for every reason, with the first names."""
    return tuple(_note(*told) for told in not_prunable(module).items())


def _note(reason: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}: not prunable, and not counted: {reason}"


def not_prunable(module: fx.GraphModule) -> dict[str, list[str]]:
    """Module paths, or weights, by the reason why no mask can act there."""
    taken = taken_by_others(module)
    reasons: dict[str, list[str]] = {}
    for path, part in parts_of(module):
        nodes = [node for graph in graphs_of(part) for node in graph.nodes]
        called = (found for node in nodes for found in _called(part, node, taken))
        computed = (found for node in nodes for found in _computed(part, node, taken))
        for name, reason in (*called, *computed, *_multiplied(part, nodes)):
            reasons.setdefault(reason, []).append(join(path, name))
    return {reason: list(dict.fromkeys(names)) for reason, names in reasons.items()}


def _called(
    module: fx.GraphModule, node: fx.Node, taken: dict[int, str]
) -> Iterator[tuple[str, str]]:
    """Modules that a node calls, and those inside of them."""
    for path, part in inside(module, node) if node.op == "call_module" else ():
        weight = getattr(part, "weight", None)
        if type(part).__module__.startswith(_QUANTIZED) and hasattr(part, "weight"):
            yield path, "it is quantized, so its weight is packed away"
        elif isinstance(part, torch.jit.ScriptModule) and part.original_name in _STOCK_NAMES:
            yield path, "it is TorchScript, where no mask acts"
        elif isinstance(part, _MULTIPLYING):
            yield path, f"{type(part).__name__} multiplies by its weights itself"
        elif is_weighted(part) and id(weight) in taken:
            yield path, f"{taken[id(weight)]} uses its weight too, where no mask acts"


def _computed(
    module: fx.GraphModule, node: fx.Node, taken: dict[int, str]
) -> Iterator[tuple[str, str]]:
    """Functional convolutions and linear calls."""
    operand = operand_of(module, node)
    if operand is None or not operand.reads:
        return
    scope = node.meta.get("scope") or str(operand.reads[0].target)
    if operand.dynamic:
        yield scope, "it mixes its weight anew for every input"
    elif prunable_read(module, operand) is None:
        yield scope, "its weight is made of several parameters, or in another shape"
    else:
        weight = attribute(module, str(operand.reads[0].target))
        if id(weight) in taken:
            yield scope, f"{taken[id(weight)]} uses its weight too, where no mask acts"


def _multiplied(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> Iterator[tuple[str, str]]:
    """The matrices that a function multiplies by, which is no layer, each with the reason."""
    operands = (operand_of(module, node) for node in nodes)
    known = {str(read.target) for operand in operands if operand for read in operand.reads}
    for node in nodes:
        if node.op != "call_module" and name_of(node) in _PRODUCTS:
            for name in filter(None, (_matrix(module, at) for at in node.all_input_nodes)):
                if name not in known:
                    yield name, f"{name_of(node).strip('_')} multiplies by it, which is no layer"


def _matrix(module: fx.GraphModule, node: fx.Node) -> str | None:
    """The parameter that a node is a view of, if that is a matrix and no layer has it.

    What is looked up in a table by an index is none.
    """
    while is_view(module, node) and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    if node.op != "get_attr":
        return None
    name = str(node.target)
    of_layer = is_weighted(module.get_submodule(name.rpartition(".")[0]))
    read = attribute(module, name)
    return name if isinstance(read, nn.Parameter) and read.ndim > 1 and not of_layer else None
